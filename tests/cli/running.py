"""Runs the command line as a user would: in this process, or in a process of its own where that matters."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout, suppress

import pytest

from daisy.cli import main


def run(*arguments, cwd=".", encoding="utf-8"):
    """Run the command in this process: starting Python and torch for each would take minutes."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2)]
    status = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["daisy", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            status = end.code
    texts = [stream.buffer.getvalue().decode(encoding, errors="replace") for stream in streams]
    return subprocess.CompletedProcess(arguments, status, *texts)


def run_and_interrupt(*arguments, cwd, journal):
    """Run the command, and send Ctrl-C when its progress file has three lines: settings and two results."""

    def interrupt():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if journal.is_file() and journal.read_bytes().count(b"\n") >= 3:
                return os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.001)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    try:
        return run(*arguments, cwd=cwd)
    finally:
        watcher.join()


def run_python(code, *arguments, cwd=".", **environment):
    """Run Python code in a process of its own; output is bytes."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=120,
    )


def read_terminal(descriptor):
    """Read the output sent to a pseudo-terminal; a single read returns only a part."""
    os.set_blocking(descriptor, False)
    parts = []
    with suppress(BlockingIOError):
        while part := os.read(descriptor, 65536):
            parts.append(part)
    return b"".join(parts).decode()
