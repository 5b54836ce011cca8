"""Write files so that they are whole or absent: each is first written beside its place, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, BinaryIO, TypeVar

import numpy
from numpy.typing import NDArray
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from daisy.errors import OutputError

Stream = TypeVar("Stream", bound=IO[bytes])
INNERMOST_LIST = re.compile(r"\[\n([-+.\d\s,eE]+)\n\s*\]")
"""A list of numbers, as indented JSON writes it."""
LEFTOVER = re.compile(r"(\..*\.[0-9a-f]{8}\.)[0-9a-f]{12}\.part")
"""Name of a temporary file: a part that is the same for all writers of a file, then a part of one writer."""


NAME_BYTES = 40
"""Bytes of a file's name in its temporary name: with all of them, long names would exceed file systems' limits."""


_FLUSHED: ContextVar[bool] = ContextVar("_FLUSHED", default=True)


@contextlib.contextmanager
def unflushed() -> Iterator[None]:
    """Leave it to the system when files are flushed to the disk: for files that nobody needs after a crash."""
    before = _FLUSHED.set(False)
    try:
        yield
    finally:
        _FLUSHED.reset(before)


def write(path: Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Write a file atomically; ``content`` is the bytes, or a function that writes them to a stream.

    Raises:
        OutputError: where it cannot be written; the previous content is kept.
    """
    beside = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing_after(open(beside, "wb")) as stream:
            if callable(content):
                content(stream)
            else:
                stream.write(content)
            stream.flush()
            if _FLUSHED.get():
                os.fsync(stream.fileno())
        os.replace(beside, path)
    except BaseException as error:  # an interrupt leaves nothing behind either
        remove(beside)
        if isinstance(error, OSError):
            raise OutputError(f"{path}: cannot be written ({explain(error)})") from None
        raise


@contextlib.contextmanager
def refusing(path: Path, what: str = "cannot be written") -> Iterator[None]:
    """Turn the system's errors into refusals that name a file or folder.

    Raises:
        OutputError: where the system raised an error: ``path: what (its reason)``.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: {what} ({explain(error)})") from None


def check_writable(path: Path) -> None:
    """Check before long work that a file can be written.

    Raises:
        OutputError: where it cannot be written.
    """
    if os.path.isdir(path):
        raise OutputError(f"{path}: is a folder")
    beside = _beside(path)
    try:
        write(beside, b"")
    except OutputError as error:
        reason = error.message.removeprefix(f"{beside}: ")
        raise OutputError(f"{path}: {reason}") from None
    remove(beside)


def remove(path: Path) -> None:
    """Remove a file that nobody needs. If that fails it stays: a clean-up must not hide the error that led to it."""
    with contextlib.suppress(OSError):
        path.unlink()


@contextlib.contextmanager
def closing_after(stream: Stream) -> Iterator[Stream]:
    """Close a stream at the end; an earlier error is raised rather than an error of closing."""
    try:
        yield stream
    except BaseException:
        with contextlib.suppress(OSError):
            stream.close()  # tries to write its buffer
        raise
    stream.close()


def explain(error: OSError) -> str:
    """Return the system's reason in words."""
    return error.strerror or str(error)


def _beside(path: Path) -> Path:
    """Make a temporary name that is unique to each writer, on other hosts too."""
    return path.with_name(f"{_beside_prefix(path.name)}{secrets.token_hex(6)}.part")


def _beside_prefix(name: str) -> str:
    """Make the beginning of a file's temporary names: its first bytes, for people, and a digest of all of it."""
    whole = os.fsencode(name)
    return f".{whole[:NAME_BYTES].decode(errors='ignore')}.{hashlib.sha256(whole).hexdigest()[:8]}."


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove what killed writers of some files left beside them. Nobody may be writing these files now."""
    leftovers: dict[Path, dict[str, list[str]]] = {}  # by folder; few entries, however many files
    for path in paths:
        if (folder := path.parent) not in leftovers:
            leftovers[folder] = _list_leftovers(folder)
        if leftovers[folder]:
            for name in leftovers[folder].pop(_beside_prefix(path.name), ()):
                remove(folder / name)


def _list_leftovers(folder: Path) -> dict[str, list[str]]:
    """List the temporary files in a folder, by the part of the name that identifies the file."""
    names: dict[str, list[str]] = {}
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if match := LEFTOVER.fullmatch(entry.name):
                names.setdefault(match[1], []).append(entry.name)
    return names


def remove_leftovers_of(folder: Path, prefix: str) -> None:
    """Remove what killed writers left of a folder's files whose names begin with a prefix.

    Nobody may be writing these files now.

    Args:
        folder: folder of the files.
        prefix: beginning of the names, less than `NAME_BYTES` long.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(f".{prefix}") and LEFTOVER.fullmatch(entry.name):
                remove(folder / entry.name)


def append(path: Path, lines: str, *, flush: bool = False) -> int:
    """Append whole lines in one call, so that the lines of two writers do not mix.

    Args:
        path: path of the file.
        lines: lines, each with its end.
        flush: flush to the disk before returning.

    Returns:
        Position in the file, in bytes, where the lines begin.

    Raises:
        OutputError: where it cannot be written.
    """
    # Unbuffered: everything is one system call, unless the disk is full.
    content = lines.encode()
    with refusing(path), closing_after(open(path, "ab", buffering=0)) as stream:
        rest = memoryview(content)
        while rest:
            rest = rest[stream.write(rest) :]
        end = stream.tell()  # after what another writer has appended since the file was opened
        if flush:
            os.fsync(stream.fileno())
    return end - len(content)


def whole_lines(path: Path, *, repair: bool = True) -> list[str]:
    """Read the lines of a file; none if there is no file. A last line that a crash cut off is dropped.

    Args:
        path: path of the file.
        repair: drop that line in the file too; not while another process may be writing it.

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
    if rest and repair:
        write(path, (whole + "\n").encode() if whole else b"")
    return whole.splitlines()


def read_lines(path: Path, *, repair: bool = False) -> Iterator[tuple[int, str]]:
    """Read the lines of a file one by one; none if there is no file. A last line that a crash cut off is dropped.

    Args:
        path: path of the file.
        repair: drop that line in the file too, after the last line; not while another process may be writing it.

    Yields:
        Position of a line in bytes, and the line without its end.

    Raises:
        OutputError: where it cannot be read.
    """
    place = 0
    try:
        with open(path, "rb") as stream:
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                yield place, line[:-1].decode()
                place += len(line)
            if repair and place < os.fstat(stream.fileno()).st_size:
                stream.seek(0)
                write(path, lambda beside: _copy_beginning(stream, beside, place))
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{path}: cannot be read ({error})") from None


def _copy_beginning(source: BinaryIO, target: BinaryIO, size: int) -> None:
    while size and (block := source.read(min(size, 1 << 20))):
        target.write(block)
        size -= len(block)


def write_json(path: Path, value: object) -> None:
    """Write indented JSON atomically, with each list of numbers on one line."""
    text = INNERMOST_LIST.sub(lambda match: "[" + " ".join(match[1].split()) + "]", json.dumps(value, indent=1))
    write(path, (text + "\n").encode())


def tensor_header(name: str, dtype: str, shape: Sequence[int], metadata: dict[str, Any]) -> bytes:
    """Make the header of a .safetensors file with one tensor.

    Args:
        name: name of the tensor.
        dtype: "float32" or "float16".
        shape: shape of the tensor.
        metadata: as in `save_tensors`.
    """
    bits = {"float32": 32, "float16": 16}[dtype]
    described = {"dtype": f"F{bits}", "shape": list(shape), "data_offsets": [0, math.prod(shape) * bits // 8]}
    return format_tensor_header({name: described}, metadata)


def format_tensor_header(tensors: Mapping[str, dict[str, Any]], metadata: dict[str, Any]) -> bytes:
    """Make the header of a .safetensors file: all that comes before the tensors' bytes.

    Args:
        tensors: dtype, shape and data_offsets of each tensor, by name.
        metadata: as in `save_tensors`.
    """
    text = json.dumps({"__metadata__": {"daisy": json.dumps(metadata)}, **tensors}).encode()
    text += b" " * (-len(text) % 8)  # aligns the first tensor
    return len(text).to_bytes(8, "little") + text


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, Any]) -> None:
    """Write a .safetensors file atomically, with JSON ``metadata`` under the one key ``daisy``.

    With several keys, their order would differ from call to call; with one, equal content gives equal bytes.
    """
    write(path, safetensors_bytes(tensors, {"daisy": json.dumps(metadata)}))


def save_array(array: NDArray[Any], path: Path) -> None:
    """Write a .npy file atomically."""

    def save(stream: BinaryIO) -> None:
        # numpy bypasses Python when it writes to files, and then does not say why it could not.
        numpy.save(SimpleNamespace(write=stream.write), array)

    write(path, save)


def digest(path: Path) -> str:
    """Compute the SHA-256 of a file, 64 hexadecimal digits."""
    state = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            state.update(block)
    return state.hexdigest()
