"""Recognise files that are not checkpoints though they are named like one: failed downloads, mostly."""

from __future__ import annotations

from pathlib import Path

HEAD_BYTES = 512
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
BEGINNINGS = (
    (LFS_POINTER, "a Git-LFS pointer, not the file it stands for: get the file itself (git lfs pull)"),
    (b"<!doctype html", "an HTML page, not a checkpoint: the download went wrong (a link to the page, or a login)"),
    (b"<html", "an HTML page, not a checkpoint: the download went wrong (a link to the page, or a login)"),
    (b"<?xml", "an XML page, not a checkpoint: the download went wrong (an error of the server, mostly)"),
    (b"{", "JSON text, not weights: the download went wrong, or this is a configuration or an index"),
    (b"\x1f\x8b", "a gzip archive: unpack it, and give what is in it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it, and give what is in it"),
)


def name_other_content(path: Path) -> str | None:
    """Say what a file is, by its first bytes, where it is of a kind that holds no weights.

    Args:
        path: path of the file.

    Returns:
        The end of a message, "a Git-LFS pointer, …"; None where the file may be a checkpoint.

    Raises:
        OSError: where the file cannot be read.
    """
    with open(path, "rb") as stream:
        head = stream.read(HEAD_BYTES)
    if not head:
        return "empty: the download or the copy broke off"
    if not head.strip(b"\0"):
        return "all zeros where it begins: the download or the copy broke off"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((said for beginning, said in BEGINNINGS if text.startswith(beginning)), None)
