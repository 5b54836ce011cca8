"""Writing that is whole or absent: beside, flushed to the disk, renamed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from daisy.errors import OutputError

INNERMOST_LIST = re.compile(r"\[\n([-+.\d\s,eE]+)\n\s*\]")
"""Of numbers, as indented JSON has it."""


def write(path: Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Write a file atomically; ``content`` is the bytes, or a function that writes them to a stream.

    Raises:
        OutputError: where it cannot be written; what stood there before still stands.
    """
    beside = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as stream:
            if callable(content):
                content(stream)
            else:
                stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, path)
    except OSError as error:
        if beside.parent.is_dir():
            beside.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None


def check_writable(path: Path) -> None:
    """Find out before long work whether a file can be written there.

    Raises:
        OutputError: where it cannot.
    """
    if path.is_dir():
        raise OutputError(f"{path}: is a folder")
    beside = _beside(path)
    write(beside, b"")
    beside.unlink()


def _beside(path: Path) -> Path:
    """A name of its own for each writer, on other hosts too."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")


def append(path: Path, lines: str, *, flush: bool = False) -> None:
    """Append whole lines at once, so that two writers do not cut each other's.

    Args:
        path: of the file.
        lines: each with its end.
        flush: to the disk, before anything else happens.

    Raises:
        OutputError: where it cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(descriptor, lines.encode())
            if flush:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from None


def whole_lines(path: Path) -> list[str]:
    """Read the lines of a file; none where there is none. One that a crash cut off is dropped, here and in the file.

    Raises:
        OutputError: where it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{path}: cannot be read ({error})") from None
    whole, _, rest = text.rpartition("\n")
    if rest:
        write(path, (whole + "\n").encode() if whole else b"")
    return whole.splitlines()


def write_json(path: Path, value: object) -> None:
    """Write indented JSON atomically; a list of numbers is one line."""
    text = INNERMOST_LIST.sub(lambda match: "[" + " ".join(match[1].split()) + "]", json.dumps(value, indent=1))
    write(path, (text + "\n").encode())


def tensor_header(name: str, dtype: str, shape: Sequence[int], metadata: dict[str, Any]) -> bytes:
    """Make what a .safetensors file with one tensor has before the tensor's bytes.

    Args:
        name: of the tensor.
        dtype: "float32" or "float16".
        shape: of the tensor.
        metadata: as of `save_tensors`.
    """
    bits = {"float32": 32, "float16": 16}[dtype]
    described = {"dtype": f"F{bits}", "shape": list(shape), "data_offsets": [0, math.prod(shape) * bits // 8]}
    text = json.dumps({"__metadata__": {"daisy": json.dumps(metadata)}, name: described}).encode()
    text += b" " * (-len(text) % 8)  # the tensor is aligned
    return len(text).to_bytes(8, "little") + text


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, Any]) -> None:
    """Write a .safetensors file atomically, with JSON ``metadata`` under the one key ``daisy``.

    Several keys would come out in another order each time; so the same content is the same bytes.
    """
    write(path, safetensors_bytes(tensors, {"daisy": json.dumps(metadata)}))


def digest(path: Path) -> str:
    """Compute the SHA-256 of a file, 64 hexadecimal digits."""
    state = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            state.update(block)
    return state.hexdigest()
