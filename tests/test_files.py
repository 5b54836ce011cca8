"""Files are complete or absent, on disks that are full, read-only, or limit the length of names."""

import contextlib
import io
import os
import resource
import shutil
import subprocess
import sys

import numpy
import pytest

from daisy import OutputError, _files

LONGEST = 255
"""Bytes of a name that the usual file systems take."""


@contextlib.contextmanager
def small_files():
    """Let no file of this process grow beyond 1,000 bytes, as on a full disk.

    It is no fixture: pytest writes its own output between a fixture and the test.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["a" * LONGEST, "é" * 127 + "b", os.fsdecode(b"\xe9" * LONGEST)])
def test_any_name_that_a_file_system_takes(tmp_path, name):
    path = tmp_path / name
    assert len(os.fsencode(name)) == LONGEST
    _files.check_writable(path)
    _files.write(path, b"first")
    _files.write(path, b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == [name]


def test_a_longer_name_is_one_line(tmp_path):
    with pytest.raises(OutputError, match=r"a: cannot be written \(File name too long\)$"):
        _files.write(tmp_path / ("a" * (LONGEST + 1)), b"")
    assert not os.listdir(tmp_path)


def test_a_file_that_cannot_be_finished_leaves_nothing_and_says_why(tmp_path):
    path = tmp_path / "a"
    _files.write(path, b"before")
    array = numpy.zeros(1000)
    for write in (lambda: _files.write(path, bytes(2000)), lambda: _files.save_array(array, path)):
        with small_files(), pytest.raises(OutputError, match=r"a: cannot be written \(File too large\)$"):
            write()
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a"]


def test_arrays_are_numpys_own_files(tmp_path):
    for array in (numpy.arange(6.0).reshape(2, 3), numpy.zeros((0, 4), "float16"), numpy.arange(6).reshape(2, 3).T):
        expected = io.BytesIO()
        numpy.save(expected, numpy.ascontiguousarray(array))
        _files.save_array(numpy.ascontiguousarray(array), tmp_path / "a.npy")
        assert (tmp_path / "a.npy").read_bytes() == expected.getvalue()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, MemoryError])
def test_whatever_ends_the_writing_is_raised_and_nothing_is_left(tmp_path, error):
    def write(stream):
        stream.write(bytes(2000))  # held back until the file is closed, which then fails
        raise error

    with small_files(), pytest.raises(error):
        _files.write(tmp_path / "a", write)
    assert not os.listdir(tmp_path)


def test_lines_that_do_not_fit_are_noticed(tmp_path):
    """The system writes what still fits and says how much that was."""
    path = tmp_path / "lines"
    _files.append(path, "x" * 899 + "\n")
    with small_files(), pytest.raises(OutputError, match=r"lines: cannot be written \(File too large\)"):
        _files.append(path, "y" * 499 + "\n")
    assert _files.whole_lines(path, repair=False) == ["x" * 899]
    assert path.stat().st_size == 1000
    assert _files.whole_lines(path) == ["x" * 899]
    assert path.stat().st_size == 900


def test_lines_are_read_with_their_places(tmp_path):
    path = tmp_path / "lines"
    assert list(_files.read_lines(path)) == []
    assert _files.append(path, "aé\n") == 0
    assert _files.append(path, "b\nc\n") == 4
    _files.append(path, "cut o")
    whole = [(0, "aé"), (4, "b"), (6, "c")]
    assert list(_files.read_lines(path)) == whole
    assert path.read_bytes().endswith(b"cut o")  # somebody may be writing it
    assert list(_files.read_lines(path, repair=True)) == whole
    assert path.read_bytes() == "aé\nb\nc\n".encode()
    path.write_bytes(b"\xff\n")
    with pytest.raises(OutputError, match=r"lines: cannot be read"):
        list(_files.read_lines(path))


def test_what_killed_writers_left_is_taken_away(tmp_path):
    names = ["a", "b", "a" * 200, "a" * 201]
    for name in names:
        prefix = _files._beside_prefix(name)
        (tmp_path / f"{prefix}{'0' * 12}.part").write_bytes(b"half")
        (tmp_path / name).write_bytes(b"whole")
    (tmp_path / ".a.part").write_bytes(b"somebody's own")
    _files.remove_leftovers([tmp_path / "a", tmp_path / ("a" * 200), tmp_path / "gone" / "c"])
    left = {path.name for path in tmp_path.iterdir()}
    kept = {f"{_files._beside_prefix(name)}{'0' * 12}.part" for name in ("b", "a" * 201)}
    assert left == {*names, ".a.part", *kept}


DISKS = """
import sys
from pathlib import Path
import numpy, torch
from daisy import _files
from daisy.extraction.feature_files import StreamedFeatures
from daisy.extraction.journal import Settings
from daisy.errors import OutputError

full, read_only = map(Path, sys.argv[1:])
settings = Settings(checkpoint="", policy={}, layers="last", scores=[], score_stride=1, format="npy", dtype="float32")

def stream(path):
    with StreamedFeatures(path, settings, 1000) as features:
        for _ in range(40):
            features.append(torch.zeros(10, 1000), 1)

array = numpy.zeros(10**6)
for folder in full, read_only:
    for name, write in {
        "bytes": lambda: _files.write(folder / "a", bytes(10**6)),
        "array": lambda: _files.save_array(array, folder / "a"),
        "lines": lambda: _files.append(folder / "a", "x" * 10**6),
        "check": lambda: _files.check_writable(folder / "a") or _files.write(folder / "a", bytes(10**6)),
        "stream": lambda: stream(folder / "a"),
    }.items():
        try:
            write()
        except OutputError as error:
            print(folder.name, name, error, sorted(path.name for path in folder.iterdir()))
        (folder == full) and (full / "a").unlink(missing_ok=True)
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs Linux's unshare to mount a small disk")
def test_full_and_read_only_disks_say_so(tmp_path):
    full, read_only = tmp_path / "full", tmp_path / "read-only"
    full.mkdir()
    read_only.mkdir()
    mount = f"mount -t tmpfs -o size=256k t '{full}' && mount -t tmpfs -o ro t '{read_only}'"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    call = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-c", DISKS, full, read_only]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    reason = "cannot be written (No space left on device)"
    assert said[:5] == [
        f"full bytes {full / 'a'}: {reason} []",
        f"full array {full / 'a'}: {reason} []",
        f"full lines {full / 'a'}: {reason} ['a']",
        f"full check {full / 'a'}: {reason} []",
        f"full stream {full / 'a'}: {reason} []",
    ]
    reason = "cannot be written (Read-only file system)"
    assert said[5:] == [
        f"read-only {name} {read_only / 'a'}: {reason} []" for name in ("bytes", "array", "lines", "check", "stream")
    ]


def test_what_nobody_needs_after_a_crash_is_not_flushed(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr("os.fsync", flushed.append)
    with _files.unflushed():
        _files.write(tmp_path / "a", b"a")
    assert ((tmp_path / "a").read_bytes(), flushed) == (b"a", [])
    _files.write(tmp_path / "b", b"b")
    assert len(flushed) == 1
