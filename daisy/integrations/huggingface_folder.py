"""Export a checkpoint to a folder for transformers, with the code that runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes

from daisy import _files
from daisy.checkpoints import Model
from daisy.checkpoints.format import ASSETS
from daisy.checkpoints.weights import cast_weights
from daisy.errors import CheckpointError, OutputError, PolicyError
from daisy.models import Backbone, BackboneConfig

CODE = ASSETS / "huggingface" / "modeling_daisy.py"
FIELDS = {
    "num_layers": "num_hidden_layers",
    "width": "hidden_size",
    "ffn_width": "intermediate_size",
    "num_heads": "num_attention_heads",
    "sample_rate": "sampling_rate",
}
"""Fields of `BackboneConfig` that have other names in transformers' configurations."""
POLICIES = (
    *("entropy", "agreement", "regressed", "confidence", "margin", "patience"),
    *("forecast", "plateau", "regressed_plateau", "fixed", "never"),
)
"""Policies that the folder's code supports."""


def export_huggingface(
    model: Model,
    folder: str | Path,
    *,
    exit_policy: str = "",
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> list[Path]:
    """Write a folder that transformers' ``AutoModel`` and ``AutoFeatureExtractor`` can load, without daisy.

    ``AutoModel.from_pretrained(FOLDER, trust_remote_code=True)`` runs the single readable file ``modeling_daisy.py``
    in the folder. Exits and states are daisy's, up to rounding; it is plain PyTorch, without daisy's speed. Only the
    heads on units are written, not CTC exits or HuBERT's own prediction head.

    Args:
        model: a HuBERT, with or without exit heads.
        folder: folder to write to; it may exist.
        exit_policy: policy of calls that name none; empty: "forecast" where the model has it, else "never".
        dtype: data type of the weights in the file.
        overwrite: replace existing files.

    Returns:
        The written files.

    Raises:
        CheckpointError: where the backbone is not a HuBERT.
        PolicyError: where the model has no settings for that policy, or the folder's code does not support it.
        OutputError: where files already exist, or cannot be written.

    Example:
        >>> import daisy, tempfile
        >>> from daisy.integrations import export_huggingface
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = export_huggingface(daisy.load("daisy-mini"), folder)
        >>> [path.name for path in files]
        ['README.md', 'config.json', 'model.safetensors', 'modeling_daisy.py', 'preprocessor_config.json']
    """
    folder = Path(folder)
    policies = {name: settings for name, settings in model.policies.items() if name in POLICIES}
    config = _make_config(model, policies, _choose_policy(model, policies, exit_policy), dtype)
    weights = {
        f"{part}.{name}": tensor
        for part, module in (("backbone", model.backbone), ("heads", model.heads))
        if module is not None
        for name, tensor in cast_weights(module, dtype).items()
    }
    contents = {
        "README.md": _format_card(model).encode(),
        "config.json": _format_json(config),
        "model.safetensors": safetensors_bytes(weights, {"format": "pt"}),
        "modeling_daisy.py": CODE.read_bytes(),
        "preprocessor_config.json": _format_json(_make_preprocessor(model.hubert.config)),
    }
    paths = [folder / name for name in contents]
    there = [path for path in paths if path.exists()]
    if there and not overwrite:
        raise OutputError(f"{there[0]}: exists", remedy="overwrite")
    for path, content in zip(paths, contents.values(), strict=True):
        _files.write(path, content)
    return paths


def _choose_policy(model: Model, policies: dict[str, Any], wanted: str) -> str:
    """Choose the policy of calls that name none."""
    if not wanted:
        return "forecast" if model.heads is not None and "forecast" in policies else "never"
    if wanted not in POLICIES:
        raise PolicyError(f"policy {wanted} cannot be exported; those that can are {', '.join(POLICIES)}")
    if wanted != "never" and wanted not in policies:
        raise PolicyError(
            f"the checkpoint has no settings of the policy {wanted}; it has {', '.join(policies) or 'none'}"
        )
    return wanted


def _make_config(model: Model, policies: dict[str, Any], exit_policy: str, dtype: torch.dtype) -> dict[str, Any]:
    """Make the content of config.json."""
    if not isinstance(model.backbone, Backbone):
        raise CheckpointError(
            f"this checkpoint's backbone is a {type(model.backbone).__name__}, and a HuBERT is wanted"
        )
    config = model.backbone.config
    if config.relative_buckets is not None or config.pos_stack is not None:
        raise CheckpointError("the exported code is of HuBERT and wav2vec 2.0, not of WavLM's or data2vec's positions")
    fields = {
        FIELDS.get(name, name): value
        for name, value in vars(config).items()
        if name not in ("relative_buckets", "relative_max_distance", "pos_stack")
    }
    heads = model.heads
    return {
        "model_type": "daisy",
        "architectures": ["DaisyModel"],
        "auto_map": {"AutoConfig": "modeling_daisy.DaisyConfig", "AutoModel": "modeling_daisy.DaisyModel"},
        "custom_pipelines": {
            "feature-extraction": {
                "impl": "modeling_daisy.DaisyFeatureExtraction",
                "pt": ["AutoModel"],
                "type": "audio",
            }
        },
        "torch_dtype": str(dtype).removeprefix("torch."),
        **fields,
        "num_units": heads.config.num_units if heads is not None else 0,
        "heads_read": heads.config.reads if heads is not None else "states",
        "regressors": heads is not None and heads.regressors is not None,
        "policies": policies if heads is not None else {},
        "exit_policy": exit_policy,
    }


def _make_preprocessor(config: BackboneConfig) -> dict[str, Any]:
    """Make the content of preprocessor_config.json: only padding, as the model itself normalises each utterance."""
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": config.sample_rate,
        "padding_value": 0.0,
        "padding_side": "right",
        "do_normalize": False,
        "return_attention_mask": True,
    }


def _format_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _format_card(model: Model) -> str:
    """Make the content of README.md: how to load the model, and where it comes from."""
    usage = (CODE.read_text(encoding="utf-8").split('"""')[1]).strip()
    origin = "\n".join(f"- {name}: {value}" for name, value in model.provenance.items())
    return (
        "---\nlibrary_name: transformers\npipeline_tag: feature-extraction\ntags: [speech, early-exit, hubert]\n---\n\n"
        f"# {usage}\n\n## Origin\n\n{origin or 'The checkpoint does not say.'}\n"
    )
