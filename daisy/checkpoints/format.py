"""The one checkpoint format: a .safetensors file whose metadata holds the configuration as JSON.

Metadata: one key, ``daisy``, whose JSON has ``format_version``, ``backbone`` (`BackboneConfig`), ``final_head`` and
``heads`` (or null), ``policies`` (default settings by policy name), ``provenance`` (free) and ``digest``, the SHA-256
of tensors and configuration (`ContentDigest`), which older files lack. Recognisers have three more: ``ctc``
(`CTCHeadsConfig`), ``tokens`` (``symbols``, ``blank``, and ``sentencepiece``, a model in base64, or null) and
``ctc_policies``; with attention decoders also ``decoders`` (`DecodersConfig`). A Conformer's ``backbone``
(`ConformerConfig`) has ``kind`` "conformer", Whisper's (`WhisperConfig`) "whisper"; HuBERT and its kin have none.
Tensors: ``backbone.*`` with torchaudio's names, ``final_head.*``, ``heads.*``, ``ctc.*`` and ``decoders.*``; any float
type, read as float32.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from daisy import _files
from daisy.checkpoints.content_digest import ContentDigest
from daisy.checkpoints.contents import name_other_content
from daisy.checkpoints.model import Model
from daisy.checkpoints.weights import cast_weights, check_weights, find_fault, list_some
from daisy.errors import CheckpointError, DaisyError
from daisy.models import (
    AttentionDecoders,
    Backbone,
    BackboneConfig,
    Conformer,
    ConformerConfig,
    CTCHeads,
    CTCHeadsConfig,
    DecodersConfig,
    ExitHeads,
    FinalHead,
    HeadsConfig,
    Tokens,
    Whisper,
    WhisperConfig,
)
from daisy.models.kinds import AnyBackbone
from daisy.models.meta import build_without_memory
from daisy.policies import make_policy
from daisy.runtime.dtypes import Precision, check_device, parse_dtype

FORMAT_VERSION = 1
ASSETS = Path(__file__).parents[1] / "assets"
logger = logging.getLogger(__name__)


def build(config: dict[str, Any]) -> Model:
    """Build a model from a configuration, without loading weights.

    Args:
        config: configuration as returned by `Model.config`.

    Returns:
        The model, with random weights.

    Raises:
        CheckpointError: on a configuration that is incomplete or invalid.
    """
    if "backbone" not in config:
        raise CheckpointError("the configuration has no backbone")
    for name in ("backbone", "policies", "provenance", "ctc_policies"):
        if not isinstance(config.get(name, {}), dict):
            raise CheckpointError(f"damaged configuration ({name} must be an object); get the file again")
    backbone = _build_backbone(config["backbone"])
    shape = backbone.config
    head = config.get("final_head")
    heads = HeadsConfig.from_dict(config["heads"]) if config.get("heads") else None
    ctc = CTCHeadsConfig.from_dict(config["ctc"]) if config.get("ctc") else None
    decoders = config.get("decoders")
    for kind, given in (("exit heads", heads), ("CTC exits", ctc)):
        if given and (given.num_layers, given.width) != (shape.num_layers, shape.width):
            raise CheckpointError(
                f"{kind} for {given.num_layers} layers of width {given.width}, and a backbone with "
                f"{shape.num_layers} of width {shape.width}"
            )
    return Model(
        backbone=backbone,
        final_head=FinalHead(shape.width, **head) if head else None,
        heads=ExitHeads(heads) if heads else None,
        policies=config.get("policies", {}),
        provenance=config.get("provenance", {}),
        ctc=CTCHeads(ctc) if ctc else None,
        tokens=Tokens.from_dict(config["tokens"]) if config.get("tokens") else None,
        ctc_policies=config.get("ctc_policies", {}),
        decoders=AttentionDecoders(DecodersConfig.from_dict(decoders)) if decoders else None,
    )


def _build_backbone(config: dict[str, Any]) -> AnyBackbone:
    kind = config.get("kind", "hubert")
    if kind == ConformerConfig.kind:
        return Conformer(ConformerConfig.from_dict(config))
    if kind == WhisperConfig.kind:
        return Whisper(WhisperConfig.from_dict(config))
    if kind != "hubert":
        raise CheckpointError(f"a backbone of kind {kind!r}, which this daisy does not know; update daisy")
    return Backbone(BackboneConfig.from_dict({key: value for key, value in config.items() if key != "kind"}))


def build_with_weights(config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Model:
    """Build a model from a configuration and weights.

    Shapes are first compared on the meta device, so that nothing is allocated that a file only claims to have.

    Args:
        config: configuration as for `build`.
        tensors: weights as for `load_weights`, on the CPU.

    Returns:
        The model, in evaluation mode, with copies of the weights.

    Raises:
        CheckpointError: as in `build` and `load_weights`.
    """
    backbone = config.get("backbone")
    num_layers = backbone.get("num_layers") if isinstance(backbone, dict) else None
    if isinstance(num_layers, int) and num_layers > len(tensors):
        raise CheckpointError(f"the configuration says {num_layers} layers, and there are {len(tensors)} tensors")
    with build_without_memory():
        model = build(config)
    check_weights(model, tensors)
    model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))  # to_empty imports sympy
    model.load_state_dict(tensors)
    return model.eval()


def save(model: Model, path: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a checkpoint atomically.

    Args:
        model: model to write.
        path: file to write, usually ``NAME.safetensors``.
        dtype: data type in the file; float16 halves its size and moves states by about 1e-3 of their deviation.

    Raises:
        OutputError: where the file cannot be written.
        CheckpointError: where weights are not finite, or exceed the range of ``dtype``.

    Example:
        >>> import daisy, pathlib, tempfile
        >>> model = daisy.load("daisy-mini")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     daisy.save(model, pathlib.Path(folder) / "copy.safetensors")
        ...     daisy.load(pathlib.Path(folder) / "copy.safetensors").heads.config.num_units
        204
    """
    try:
        tensors = cast_weights(model, dtype)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}", remedy=error.remedy) from None
    if faults := {key: fault for key, value in tensors.items() if (fault := find_fault(key, value))}:
        raise CheckpointError(
            f"{path}: weights that are {list_some(list(faults.values()), 1)}: {list_some(list(faults))}"
        )
    config = json.loads(json.dumps({"format_version": FORMAT_VERSION, **model.config()}))  # as it will be read
    _files.save_tensors(tensors, Path(path), {**config, "digest": ContentDigest.of(config, tensors)})


def load(
    source: str | Path, *, device: str | torch.device = "cpu", dtype: Precision | torch.dtype = "float32"
) -> Model:
    """Read a checkpoint, and check that its content is as it was written.

    An older file without a digest is read with a note in the log (``logging.getLogger("daisy")``).

    Args:
        source: a path, or the name of a bundled model ("daisy-mini").
        device: device for the weights, which are float32 there, whatever the file's data type.
        dtype: default data type in which the model's encoders compute; see `EarlyExitEncoder`.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: where the file does not exist, is damaged, or is of another format or a later version.
        UsageError: where the device or dtype does not exist, or the device does not support the dtype.

    Example:
        >>> import daisy
        >>> model = daisy.load("daisy-mini")
        >>> model.backbone.config.num_layers
        12
    """
    device = check_device(device)
    precision = parse_dtype(dtype, device)
    path = find(source)
    config, tensors, is_whole = _read(path)
    try:
        if (version := config.get("format_version")) != FORMAT_VERSION:
            raise CheckpointError(f"format version {version}, this daisy reads {FORMAT_VERSION}; update daisy")
        model = build_with_weights(config, tensors)
        for name, settings in (*model.policies.items(), *model.ctc_policies.items()):
            make_policy(name, settings)
    except DaisyError as error:
        raise CheckpointError(f"{path}: {error.message}", remedy=error.remedy, path=error.path) from None
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        first_line = (str(error).splitlines() or [""])[0][:200]
        raise CheckpointError(f"{path}: damaged configuration ({first_line}); get the file again") from None
    if is_whole is None:
        logger.warning(
            "%s: written before checkpoints had a digest of their content, so damage to it would not be noticed; "
            "saving it again adds one",
            path,
        )
    elif not is_whole:
        raise CheckpointError(f"{path}: damaged: the content is not what was written (its digest); get the file again")
    model.path, model.dtype = path, precision
    return model.to(device)


def find(source: str | Path) -> Path:
    """Find the file for a path or the name of a bundled model.

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


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], bool | None]:
    """Read a file's configuration, its tensors as float32, and whether they are as written; None: unknown."""
    try:
        with safe_open(path, framework="pt") as file:
            config = _parse_metadata(path, file.metadata() or {})
            wanted = config.get("digest")
            content, tensors = ContentDigest(), {}
            for key in sorted(file.keys()):  # safe_open is not a dict
                tensor = file.get_tensor(key)
                if not tensor.is_floating_point():
                    raise CheckpointError(f"{path}: {key} is {tensor.dtype}, no weight; get the file again")
                if wanted:
                    content.add(key, tensor)
                tensors[key] = tensor.float()
            return config, tensors, content.finish(config) == wanted if wanted else None
    except SafetensorError as error:
        if other := name_other_content(path):
            raise CheckpointError(f"{path}: is {other}") from None
        if path.suffix == ".safetensors":
            raise CheckpointError(f"{path}: not a whole .safetensors file ({error}); get it again") from None
        raise CheckpointError(f"{path}: not a whole .safetensors file ({error})", remedy="convert", path=path) from None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None


def _parse_metadata(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if "daisy" not in metadata:
        raise CheckpointError(f"{path}: a .safetensors file, but not a daisy checkpoint", remedy="convert", path=path)
    try:
        config = json.loads(metadata["daisy"])
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged configuration ({error}); get the file again") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: damaged configuration (no object); get the file again")
    return config
