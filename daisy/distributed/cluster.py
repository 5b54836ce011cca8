"""Connect to a Ray cluster, or start one on this machine for as long as it is needed."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from daisy.errors import UsageError

MIN_STORE_BYTES = 128 * 2**20
"""Minimum shared memory of a cluster that is started here: Ray refuses less than 75 MiB."""


@dataclass(frozen=True)
class Share:
    """The resources that a worker requests from the cluster.

    Args:
        cpus: number of CPU cores; torch uses as many threads.
        gpus: number of GPUs, or a fraction of one.

    Raises:
        UsageError: if a worker would have no core, or less than 0 GPUs.
    """

    cpus: int = 1
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise UsageError(f"a worker needs 1 core at least, not {self.cpus}")
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise UsageError(f"a worker takes 0 GPUs, a part of one, or a whole number of them, not {self.gpus:g}")

    def __str__(self) -> str:
        cores = f"{self.cpus} core{'s' if self.cpus > 1 else ''}"
        return f"{cores} and {self.gpus:g} GPU{'s' if self.gpus > 1 else ''}" if self.gpus else cores


def import_ray() -> Any:
    """Import Ray.

    Raises:
        UsageError: if Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("Ray is not installed", remedy="ray") from None
    return ray


@contextlib.contextmanager
def connect(address: str | None, *, num_cpus: int | None = None, store_bytes: int = 0) -> Iterator[Any]:
    """Connect to a Ray cluster within a context.

    An existing connection is used and stays open. Without an address, given here or in the environment
    (``RAY_ADDRESS``), a cluster is started on this machine and stopped when the context ends.

    Args:
        address: address of the cluster: "auto", "HOST:PORT" or "ray://HOST:PORT".
        num_cpus: number of cores of a cluster that is started here; None: all cores of the machine.
        store_bytes: bytes that will be put into the cluster's shared memory.

    Yields:
        The module ``ray``.

    Raises:
        UsageError: if Ray is not installed, or no cluster answers.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address in (None, "local"):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise Ray sends usage statistics to its makers
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 would starve workers wherever anything else runs
        settings: dict[str, Any] = {
            "address": "local",
            "num_cpus": num_cpus,
            "object_store_memory": max(MIN_STORE_BYTES, 2 * store_bytes),
            "include_dashboard": False,
        }
    else:
        settings = {"address": address}
    # Otherwise the workers' output would be mixed into the driver's.
    settings |= {"log_to_driver": False, "configure_logging": True, "logging_level": logging.ERROR}
    try:
        ray.init(**settings)
    except Exception as error:  # of many kinds; a timeout because the machine is busy is a plain Exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if settings["address"] == "local":
            raise UsageError(f"Ray cannot start a cluster on this machine ({reason})") from None
        # With an explicit address, Ray does not look for the token itself.
        hint = "" if os.environ.get("RAY_AUTH_MODE") else "; if it has a token, set RAY_AUTH_MODE=token"
        raise UsageError(f"Ray cannot reach the cluster at {address} ({reason}){hint}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def count_places(ray: Any, share: Share) -> int:
    """Count the workers that the nodes of a cluster would have room for if nothing else were running."""
    places = 0
    for node in ray.nodes():
        if node["Alive"]:
            resources = node["Resources"]
            by_cpu = int(resources.get("CPU", 0) // share.cpus)
            places += min(by_cpu, int(resources.get("GPU", 0) / share.gpus)) if share.gpus else by_cpu
    return places
