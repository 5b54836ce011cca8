"""Files with a checkpoint's name that are not checkpoints, at loading and at conversion."""

import gzip

import pytest
import torch
from safetensors.torch import save_file

import daisy
from daisy import CheckpointError
from daisy.checkpoints.converters import convert
from tests.cli.running import run

POINTER = """version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 378342864
"""
CASES = {
    "a Git-LFS pointer, not the file it stands for": POINTER.encode(),
    "an HTML page, not a checkpoint": b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n",
    "an HTML page, not": b"\xef\xbb\xbf\n  <html lang='en'>\n",
    "an XML page, not a checkpoint": b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code></Error>',
    "JSON text, not weights": b'{"error": "Repository not found"}',
    "a gzip archive: unpack it": gzip.compress(b"weights"),
    "empty: the download or the copy broke off": b"",
    "all zeros where it begins": bytes(4096),
}


@pytest.mark.parametrize("name", ["hubert.pt", "hubert.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("said", CASES)
def test_it_is_called_what_it_is(said, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(CASES[said])
    for read in (daisy.load, convert, lambda path: convert(path, allow_pickle=True)):
        with pytest.raises(CheckpointError) as error:
            read(path)
        assert str(error.value).startswith(f"{path}: is {said}")
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("size", [int.from_bytes(b" {", "little"), int.from_bytes(b"\x1f\x8b", "little")])
def test_a_length_that_looks_like_other_content(size, tmp_path):
    """A .safetensors file begins with the length of its header: 31,520 is " {", and 35,615 is gzip's mark."""
    save_file({"weight": torch.zeros(2)}, tmp_path / "x.safetensors", {"note": "x" * (size - 200)})
    content = (tmp_path / "x.safetensors").read_bytes()
    header, rest = content[8 : 8 + (before := int.from_bytes(content[:8], "little"))], content[8 + before :]
    content = size.to_bytes(8, "little") + header.ljust(size) + rest
    (tmp_path / "x.safetensors").write_bytes(content)
    for read in (daisy.load, convert):
        with pytest.raises(
            CheckpointError, match="not a daisy checkpoint|not a checkpoint that daisy knows .* weight$"
        ):
            read(tmp_path / "x.safetensors")


def test_in_a_hugging_face_folder(tmp_path):
    (tmp_path / "config.json").write_text(POINTER)
    with pytest.raises(CheckpointError, match=r"config\.json is a Git-LFS pointer"):
        convert(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "hubert"}')
    (tmp_path / "model.safetensors").write_text(POINTER)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is a Git-LFS pointer"):
        convert(tmp_path)


def test_on_the_command_line(tmp_path):
    (tmp_path / "x.pt").write_text(POINTER)
    for command in (("convert", "x.pt", "y.safetensors"), ("info", "x.pt")):
        done = run(*command, cwd=tmp_path)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.endswith(
            "x.pt: is a Git-LFS pointer, not the file it stands for: get the file itself (git lfs pull)"
        )


def test_links_that_lead_nowhere_and_files_that_cannot_be_read(tmp_path):
    (tmp_path / "x.pt").symlink_to("../blobs/abc")
    with pytest.raises(CheckpointError, match=r"x\.pt: is a link to \.\./blobs/abc, which is not there: get it again"):
        convert(tmp_path / "x.pt")
    (tmp_path / "y.pt").write_bytes(b"PK\x03\x04 no zip archive")
    with pytest.raises(CheckpointError, match="damaged, or no checkpoint at all"):
        convert(tmp_path / "y.pt")
