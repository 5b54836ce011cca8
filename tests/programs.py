"""Programs that users call, as small files in a folder that let another process fork (`tests.fork_server`)."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

from tests import fork_server

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def start_programs(folder, names, modules):
    """Write programs with these names into a folder; they run in forks of one process that has imported the modules."""
    path = folder / "socket"
    for name in names:
        (folder / name).write_text(
            f'#!/bin/sh\nexec {sys.executable} -S -E {fork_server.__file__} {path} {name} "$@"\n'
        )
        (folder / name).chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        descriptor = listener.fileno()
        server = subprocess.Popen(
            [sys.executable, fork_server.__file__, "serve", str(descriptor), *modules],
            pass_fds=[descriptor],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,  # as its forks' are: Python's streams do not change from files to pipes
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        )
    yield folder
    server.communicate()
