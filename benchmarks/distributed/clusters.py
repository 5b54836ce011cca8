"""Ray clusters of several nodes on this machine; each node has its own resources and its own raylet."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from daisy.errors import DaisyError

START_SEC = 120.0


class Cluster:
    """A head node, and nodes that join and leave it; all are child processes of this process.

    Args:
        folder: folder for Ray's files.
        num_cpus: number of cores of the head node.
    """

    def __init__(self, folder: Path, num_cpus: int):
        self._folder = folder
        self.nodes: list[subprocess.Popen[bytes]] = []
        # Port 0 lets Ray choose a free port, which it then prints.
        head = self._start("--head", "--port=0", "--include-dashboard=false", f"--temp-dir={folder}", cpus=num_cpus)
        self.address = self._read_address(head)

    def add_node(self, num_cpus: int) -> int:
        """Add a node to the cluster, and return its number."""
        self._start(f"--address={self.address}", cpus=num_cpus)
        return len(self.nodes) - 1

    def kill_node(self, number: int) -> None:
        """Kill a node as a power cut would: all of its processes at once, including its workers."""
        self.nodes[number].send_signal(signal.SIGSTOP)  # so that it cannot notify anyone
        for pid in [*list_descendants(self.nodes[number].pid), self.nodes[number].pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.nodes[number].wait()

    def stop(self) -> None:
        """Stop all nodes."""
        for number in reversed(range(len(self.nodes))):
            if self.nodes[number].poll() is None:
                self.kill_node(number)

    def _start(self, *arguments: str, cpus: int) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
        ray = Path(sys.executable).parent / "ray"
        command = [str(ray), "start", "--block", f"--num-cpus={cpus}", "--object-store-memory=200000000", *arguments]
        with open(self._folder / f"node-{len(self.nodes)}.log", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        self.nodes.append(process)
        return process

    def _read_address(self, head: subprocess.Popen[bytes]) -> str:
        deadline = time.monotonic() + START_SEC
        while head.poll() is None and time.monotonic() < deadline:
            text = (self._folder / "node-0.log").read_text(errors="replace")
            if match := re.search(r"--address='?([\d.]+:\d+)", text):
                return match[1]
            time.sleep(0.2)
        raise DaisyError(f"{self._folder / 'node-0.log'}: no Ray cluster has started")


@contextlib.contextmanager
def start_cluster(num_cpus: int) -> Iterator[Cluster]:
    """Start a head node with that many cores, to which nodes can be added; all stop when the context ends."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = None
        before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
        # Use a separate token: the nodes and drivers that are started in this context authenticate with it.
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
        try:
            cluster = Cluster(Path(folder), num_cpus)
            yield cluster
        finally:
            if cluster is not None:
                cluster.stop()
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def list_descendants(pid: int) -> list[int]:
    """List all descendants of a process: its children, their children and so on."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(status.parent.name))
    descendants, queue = [], [pid]
    while queue:
        queue += (started := children.get(queue.pop(), []))
        descendants += started
    return descendants
