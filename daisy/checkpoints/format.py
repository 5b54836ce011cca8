"""The one checkpoint format: a .safetensors file whose metadata holds the configuration as JSON.

Metadata: one key, ``daisy``, whose JSON has ``format_version``, ``backbone`` (`BackboneConfig`), ``final_head`` and
``heads`` (or null), ``policies`` (default settings by policy name) and ``provenance`` (free).
Tensors: ``backbone.*`` under torchaudio's names, ``final_head.*`` and ``heads.*``; any float type, read as float32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from daisy import _files
from daisy.checkpoints.model import Model
from daisy.errors import CheckpointError, DaisyError
from daisy.models import Backbone, BackboneConfig, ExitHeads, FinalHead, HeadsConfig
from daisy.policies import make_policy
from daisy.runtime.dtypes import Precision, check_device, parse_dtype

FORMAT_VERSION = 1
ASSETS = Path(__file__).parents[1] / "assets"


def build(config: dict[str, Any]) -> Model:
    """Build a model of this configuration, its weights not yet loaded.

    Args:
        config: as `Model.config` gives it.

    Returns:
        The model, with random weights.

    Raises:
        CheckpointError: on a configuration that is incomplete or impossible.
    """
    if "backbone" not in config:
        raise CheckpointError("the configuration has no backbone")
    if not isinstance(config.get("policies", {}), dict):
        raise CheckpointError("damaged configuration (policies must be settings by name); get the file again")
    backbone = BackboneConfig.from_dict(config["backbone"])
    head, heads = config.get("final_head"), config.get("heads")
    return Model(
        backbone=Backbone(backbone),
        final_head=FinalHead(backbone.width, **head) if head else None,
        heads=ExitHeads(HeadsConfig.from_dict(heads)) if heads else None,
        policies=config.get("policies", {}),
        provenance=config.get("provenance", {}),
    )


def load_weights(model: Model, tensors: dict[str, Tensor]) -> None:
    """Put ``{"backbone.…": tensor, …}`` into a model; every tensor must find its place and every place its tensor.

    Args:
        model: changed in place.
        tensors: by the names of ``model.state_dict()``.

    Raises:
        CheckpointError: naming what is missing, left over or of another shape.
    """
    places = model.state_dict()
    problems = []
    if missing := sorted(set(places) - set(tensors)):
        problems.append(f"missing {_some(missing)}")
    if extra := sorted(set(tensors) - set(places)):
        problems.append(f"not part of this model {_some(extra)}")
    problems += [
        f"{key} is {tuple(tensors[key].shape)} where the configuration says {tuple(place.shape)}"
        for key, place in places.items()
        if key in tensors and tensors[key].shape != place.shape
    ]
    if problems:
        raise CheckpointError("weights and configuration do not match: " + "; ".join(problems[:4]))
    model.load_state_dict(tensors)
    model.eval()


def save(model: Model, path: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a checkpoint, atomically.

    Args:
        model: what to write.
        path: where, usually ``NAME.safetensors``.
        dtype: type of the weights in the file; float16 halves it and moves states by about 1e-3 of their deviation.

    Raises:
        OutputError: where it cannot be written.
        CheckpointError: where weights are not finite, or pass the range of ``dtype``.

    Example:
        >>> import daisy, pathlib, tempfile
        >>> model = daisy.load("daisy-mini")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     daisy.save(model, pathlib.Path(folder) / "copy.safetensors")
        ...     daisy.load(pathlib.Path(folder) / "copy.safetensors").heads.config.num_units
        104
    """
    weights = {key for key, _ in model.named_parameters()}
    tensors = {
        key: value.detach().to("cpu", dtype if key in weights else torch.float32).contiguous()
        for key, value in model.state_dict().items()
    }
    if lost := [key for key, value in tensors.items() if not value.isfinite().all()]:
        raise CheckpointError(f"{path}: {_some(lost)} would not be finite in {dtype}; save it as float32")
    _files.save_tensors(tensors, Path(path), {"format_version": FORMAT_VERSION, **model.config()})


def load(
    source: str | Path, *, device: str | torch.device = "cpu", dtype: Precision | torch.dtype = "float32"
) -> Model:
    """Read a checkpoint.

    Args:
        source: a path, or the name of a bundled model ("daisy-mini").
        device: where to put the weights; they are float32 there whatever the file's type.
        dtype: what the model's encoders compute in where they are not told otherwise; see `EarlyExitEncoder`.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: where there is none, or it is damaged, of another format, or of a later version.
        UsageError: where there is no such device or dtype, or this dtype not on this device.

    Example:
        >>> import daisy
        >>> model = daisy.load("daisy-mini")
        >>> model.backbone.config.num_layers
        12
    """
    device = check_device(device)
    precision = parse_dtype(dtype, device)
    path = find(source)
    metadata, tensors = _read(path)
    if "daisy" not in metadata:
        raise CheckpointError(f"{path}: a .safetensors file, but not a daisy checkpoint", remedy="convert", path=path)
    try:
        config = json.loads(metadata["daisy"])
        if (version := config.get("format_version")) != FORMAT_VERSION:
            raise CheckpointError(f"format version {version}, this daisy reads {FORMAT_VERSION}; update daisy")
        model = build(config)
        load_weights(model, tensors)
        for name, settings in model.policies.items():
            make_policy(name, settings)
    except DaisyError as error:
        raise CheckpointError(f"{path}: {error.message}", remedy=error.remedy, path=error.path) from None
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged configuration ({error}); get the file again") from None
    model.path, model.dtype = path, precision
    return model.to(device)


def find(source: str | Path) -> Path:
    """Find the file of a path or of a bundled model's name.

    Args:
        source: a path, or a name ("daisy-mini").

    Returns:
        The file's path.

    Raises:
        CheckpointError: where neither exists.
    """
    bundled = ASSETS / f"{source}.safetensors"
    if bundled.parent == ASSETS and bundled.is_file():
        return bundled
    path = Path(source)
    if path.is_file():
        return path
    if path.exists():
        raise CheckpointError(f"{path}: is a folder, not a checkpoint")
    names = ", ".join(sorted(file.stem for file in ASSETS.glob("*.safetensors"))) or "none"
    raise CheckpointError(f"{source}: no such checkpoint; bundled models: {names}")


def digest(source: str | Path) -> str:
    """Compute the SHA-256 of a checkpoint's file.

    Args:
        source: a path, or the name of a bundled model.

    Returns:
        64 hexadecimal digits.

    Raises:
        CheckpointError: where there is no such checkpoint.
    """
    return _files.digest(find(source))


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118  safe_open is no dict
    except SafetensorError as error:
        if path.suffix == ".safetensors":
            raise CheckpointError(f"{path}: not a whole .safetensors file ({error}); get it again") from None
        raise CheckpointError(f"{path}: not a whole .safetensors file ({error})", remedy="convert", path=path) from None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None


def _some(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
