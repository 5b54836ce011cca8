"""Runs programs without Python's start-up: a process that has imported what they need is forked for each of them.

    python fork_server.py serve DESCRIPTOR MODULE ...   serves at a listening socket, until its standard input is closed
    python fork_server.py SOCKET PROGRAM ...            runs a program there as if it ran here

A fork is a process of its own, like a user's: arguments, folder, environment, hydra and fairseq's registries are new,
and the program's own entry point runs in it. Only the time for imports is saved.
"""

import json
import os
import signal
import socket
import sys

CRASHED = 70
"""Exit status of a program that was killed."""


def serve(descriptor, modules):
    import gc
    import importlib
    import select

    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # the imported objects are not scanned again in every fork
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks that have ended are not waited for
    with socket.socket(fileno=descriptor) as listener:
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                connection.sendall(bytes([answer(connection)]))
                os._exit(0)
            connection.close()
    os._exit(0)  # tearing down the imported modules takes a second


def answer(connection):
    """Run a client's request, with its folder, environment and streams, and return the exit status."""
    length, streams, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as stream:
        request = json.loads(stream.read(int.from_bytes(length, "big")))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    try:
        status = status_of(run_program, *request["arguments"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return status


def status_of(program, *arguments):
    """Return the exit status that Python would have."""
    import traceback

    try:
        program(*arguments)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def run_program(name, *arguments):
    """Run a console script, or ``python`` with ``-m`` or ``-c``."""
    import importlib.metadata
    import runpy

    if name != "python":
        (script,) = importlib.metadata.entry_points(group="console_scripts", name=name)
        sys.argv = [name, *arguments]
        sys.exit(script.load()())
    kind, what, *rest = arguments
    sys.argv = [kind, *rest]
    sys.path.insert(0, os.getcwd())
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


def ask(path, arguments):
    """Run a program in a fork of the server, with this process's streams, and return its exit status."""
    request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    content = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [len(content).to_bytes(8, "big")], [0, 1, 2])
        connection.sendall(content)
        status = connection.recv(1)
    return status[0] if status else CRASHED


if __name__ == "__main__":
    if sys.argv[1] != "serve":
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
    del sys.path[0]  # this folder: its packages have the names of those that they test
    serve(int(sys.argv[2]), sys.argv[3:])
