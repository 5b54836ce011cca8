"""Read checkpoint files without unpickling where possible, and else without importing the classes that they name."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from daisy.checkpoints.contents import name_other_content
from daisy.errors import CheckpointError

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that torch's DistributedDataParallel and torch.compile put before each name."""

IMPORTED = {
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch.storage", "UntypedStorage"),
    ("torch.storage", "TypedStorage"),
    ("torch", "Size"),
    ("collections", "OrderedDict"),
    ("argparse", "Namespace"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}
BUILTINS = {
    "set",
    "frozenset",
    "list",
    "dict",
    "tuple",
    "int",
    "float",
    "complex",
    "bool",
    "str",
    "bytes",
    "bytearray",
    "slice",
    "range",
    "object",
}


def read_state(path: Path, allow_pickle: bool) -> dict[str, Any]:
    """Read the dictionary in a .safetensors, .pt, .pth or .bin file; names lose the prefixes of `WRAPPERS`.

    Plain tensors and containers are read by torch's restricted loader. Anything else needs ``allow_pickle``; even
    then only code that rebuilds tensors, arrays and plain containers is imported by name; everything else is replaced
    by inert objects (`to_plain` reads them), so that fairseq's checkpoints open without fairseq.

    Args:
        path: path of the file.
        allow_pickle: read files that hold pickled Python objects.

    Returns:
        The content of the file, by key; tensors on the CPU.

    Raises:
        CheckpointError: where the file is missing or damaged, is something else altogether, such as a Git-LFS pointer,
            or needs unpickling that was not allowed.
    """
    try:
        if path.suffix == ".safetensors":
            return strip_wrappers(_load_safetensors(path))
        if other := name_other_content(path):
            raise CheckpointError(f"is {other}")
        if damaged := find_damaged_record(path):
            raise CheckpointError(f"damaged: its record {damaged} is not what was written; get the file again")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if "weights_only" not in str(error).lower() and "weights only" not in str(error).lower():
                raise
            if not allow_pickle:
                raise CheckpointError(
                    "holds pickled Python objects; unpickling can run code, so only if you trust where it comes from",
                    remedy="allow_pickle",
                ) from None
            state = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_STAND_IN_PICKLE)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(name_missing_file(path)) from None
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror or error})") from None
    except Exception as error:  # a damaged pickle can raise anything
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"damaged, or no checkpoint at all ({first_line[:120]})") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"holds a {type(state).__name__}, not a dictionary of weights")
    unwrapped = strip_wrappers(state)
    if isinstance(weights := unwrapped.get("model"), dict) and not isinstance(weights, StandIn):
        unwrapped["model"] = strip_wrappers(weights)
    return unwrapped


def strip_wrappers(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """Strip the prefixes of `WRAPPERS` from all keys; a prefix that any key lacks is not a wrapper's, and stays."""
    stripped = dict(state)
    while stripped and (
        prefix := next((prefix for prefix in WRAPPERS if all(str(key).startswith(prefix) for key in stripped)), None)
    ):
        stripped = {str(key).removeprefix(prefix): value for key, value in stripped.items()}
    return stripped


def _load_safetensors(path: Path) -> dict[str, Any]:
    """Load a .safetensors file; it begins with the header's length, which may look like another format's start."""
    try:
        return load_file(path)
    except SafetensorError:
        if other := name_other_content(path):
            raise CheckpointError(f"is {other}") from None
        raise


def find_damaged_record(path: Path) -> str | None:
    """Find a record whose checksum does not match its content, in a file of torch.save; torch.load does not check.

    Where no checksum matches, the file was written without checksums (``torch.serialization.set_crc32_options``).
    """
    if not zipfile.is_zipfile(path):  # torch's older format, which has no checksums
        return None
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        damaged = [record.filename for record in records if not _is_whole(archive, record)]
    return damaged[0] if damaged and len(damaged) < len(records) else None


def _is_whole(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(record) as stream:
            while stream.read(1 << 20):
                pass
    except zipfile.BadZipFile:
        return False
    return True


def name_missing_file(path: Path) -> str:
    """Say that the file does not exist, or that a link is broken, as in a cache whose files are gone."""
    if path.is_symlink():
        return f"is a link to {path.readlink()}, which is not there: get it again"
    return "no such file"


class StandIn(dict[Any, Any]):
    """An object whose class was not imported: it only holds its arguments and state."""

    def __init__(self, *args: Any):
        super().__init__()
        self.args = args
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        """Store an item, as the unpickler appends them to list-like objects."""
        self[len(self)] = item


def to_plain(value: Any) -> Any:
    """Turn a configuration into plain dictionaries, lists and scalars: no Namespace, OmegaConf nodes or enums."""
    if isinstance(value, argparse.Namespace):
        return to_plain(vars(value))
    if isinstance(value, StandIn):
        if isinstance(value.state, dict) and "_content" in value.state:  # omegaconf.DictConfig, ListConfig
            return to_plain(value.state["_content"])
        if isinstance(value.state, dict) and "_val" in value.state:  # omegaconf's leaf nodes
            return to_plain(value.state["_val"])
        if isinstance(value.state, dict) and value.state:
            return to_plain(value.state)
        return to_plain(value.args[0]) if value.args else None  # enums are rebuilt from their value
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


class _StandInUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_type = module == "torch" and (
            name.endswith("Storage") or isinstance(getattr(torch, name, None), torch.dtype)
        )
        known = (module, name) in IMPORTED or (is_type and name.isidentifier())
        if known or (module == "builtins" and name in BUILTINS):
            return super().find_class(module, name)
        return type(name, (StandIn,), {"__module__": module})


_STAND_IN_PICKLE = SimpleNamespace(
    __name__="daisy.checkpoints.converters.reading",
    Unpickler=_StandInUnpickler,
    load=lambda stream, **options: _StandInUnpickler(stream, **options).load(),
)
