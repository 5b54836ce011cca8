"""Places for an extraction's files: a folder, or storage that fsspec reaches, such as ``s3://bucket/run``."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from daisy import _files
from daisy.errors import OutputError, UsageError

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "r2"}
"""Protocols whose files appear once complete; elsewhere a file is written under another name, then renamed."""


class Place(Protocol):
    """A place for files, each complete or absent; names are relative to the place."""

    def take(self, file: Path, name: str) -> None:
        """Put a copy of a file there.

        Raises:
            OutputError: if it cannot be written.
        """

    def list_names(self, prefix: str = "") -> set[str]:
        """List the files there whose names begin with ``prefix``.

        Raises:
            OutputError: if the place cannot be read.
        """

    def has(self, name: str) -> bool:
        """Return whether a file is there."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there.

        Raises:
            OutputError: if it cannot be removed.
        """


def open_place(out: Path, store: str) -> Place:
    """Open the place of a run's files: its store or, without one, its folder.

    Raises:
        UsageError: as `Storage` does.
    """
    return Storage(store) if store else Folder(out)


class Folder:
    """A folder that this machine sees."""

    def __init__(self, root: Path):
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def take(self, file: Path, name: str) -> None:
        """Write a copy of a file, atomically."""

        def copy(stream: BinaryIO) -> None:
            with open(file, "rb") as source:
                shutil.copyfileobj(source, stream, 2**22)

        _files.write(self.root / name, copy)

    def list_names(self, prefix: str = "") -> set[str]:
        """List the files in the folder itself."""
        if not self.root.exists():
            return set()
        with _files.refusing(self.root, "cannot be read"):
            return {entry.name for entry in os.scandir(self.root) if entry.name.startswith(prefix) and entry.is_file()}

    def has(self, name: str) -> bool:
        """Return whether a file is there."""
        return os.path.isfile(self.root / name)

    def remove(self, name: str) -> None:
        """Remove a file."""
        try:
            (self.root / name).unlink()
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise OutputError(f"{self.root / name}: cannot be taken away ({_files.explain(error)})") from None


class Storage:
    """Storage that fsspec reaches, by the usual client of its protocol: s3fs for ``s3://``, and so on.

    The client finds credentials and endpoints, for example in ``AWS_ENDPOINT_URL`` and ``~/.aws``.

    Args:
        url: URL of the place: protocol, bucket and path.

    Raises:
        UsageError: if fsspec or the protocol's client is not installed, or does not understand the URL.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.protocol = url.partition("://")[0]
        self._listed: set[str] | None = None
        self._connect()

    def _connect(self) -> None:
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise UsageError("fsspec is not installed", remedy="storage") from None
        try:
            self._fs, self._root = url_to_fs(self.url)
        except ImportError as error:
            raise UsageError(f"{self.url}: {error}", remedy="storage") from None
        except ValueError as error:
            raise UsageError(f"{self.url}: cannot be reached ({error})") from None

    def __str__(self) -> str:
        return self.url

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "protocol": self.protocol, "_listed": None}  # without connections

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._connect()

    def take(self, file: Path, name: str) -> None:
        """Upload a file, first under another name unless the storage hides incomplete files."""
        path = f"{self._root}/{name}"
        with self._explained(name, "cannot be written"):
            if self.protocol in OBJECT_STORES:
                self._fs.put_file(str(file), path)
                return
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            beside = f"{path}.{secrets.token_hex(6)}.part"
            self._fs.put_file(str(file), beside)
            self._fs.mv(beside, path)

    def check_writable(self) -> None:
        """Check before long work that files can be written there.

        Raises:
            OutputError: if they cannot.
        """
        with self._explained("", "cannot be written"):
            path = f"{self._root}/.{secrets.token_hex(6)}.part"
            if self.protocol not in OBJECT_STORES:  # which would create a bucket there
                self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(path, b"")
            self._fs.rm_file(path)

    def list_names(self, prefix: str = "") -> set[str]:
        """List the files at and below the place."""
        with self._explained("", "cannot be read"):
            try:
                paths = self._fs.find(self._root)
            except FileNotFoundError:
                return set()
        start = len(self._root.rstrip("/")) + 1
        return {path[start:] for path in paths if path.startswith(prefix, start)}

    def has(self, name: str) -> bool:
        """Return whether a file was there at the first call, by one listing rather than one request per file."""
        if self._listed is None:
            self._listed = self.list_names()
        return name in self._listed

    def remove(self, name: str) -> None:
        """Remove a file."""
        with self._explained(name, "cannot be taken away"), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{name}")

    @contextlib.contextmanager
    def _explained(self, name: str, what: str) -> Iterator[None]:
        """Turn the client's errors, which are of many kinds, into `OutputError`."""
        try:
            yield
        except Exception as error:
            where = f"{self.url}/{name}" if name else self.url
            raise OutputError(f"{where}: {what} ({str(error) or type(error).__name__})") from None
