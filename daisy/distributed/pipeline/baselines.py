"""Systems to compare with model-distributed inference with exits, each a change of topology and rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from daisy.distributed.pipeline.topology import Topology, hold_everything, keep_source_only
from daisy.errors import UsageError, unknown_name


def _with_rules(topology: Topology, **changes: object) -> Topology:
    return replace(topology, rules=topology.rules.replace(**changes))


SYSTEMS: dict[str, Callable[[Topology], Topology]] = {
    "mdi": lambda topology: topology,
    "no-exits": lambda topology: _with_rules(topology, exits=False),
    "random": lambda topology: _with_rules(topology, offloading="random"),
    "joint": lambda topology: _with_rules(topology, offloading="routed"),
    "data": lambda topology: _with_rules(hold_everything(topology), exits=False),
    "data-exits": hold_everything,
    "one-worker": keep_source_only,
    "one-worker-no-exits": lambda topology: _with_rules(keep_source_only(topology), exits=False),
}
"""Systems by name. ``mdi`` is the topology as it is; ``no-exits`` runs all layers of every task; ``random`` offloads at
random; ``joint`` routes by shares that were chosen together with the exit level (`daisy.distributed.pipeline.joint`,
ours, after the idea in the abstract of DTO-EE, arXiv:2412.08284); ``data`` and ``data-exits`` give each worker the
whole model and distribute utterances; ``one-worker`` is the source's worker alone."""


def make_system(name: str, topology: Topology) -> Topology:
    """Return a topology changed into one of `SYSTEMS`.

    Raises:
        UsageError: if the name is unknown.
    """
    if name not in SYSTEMS:
        raise UsageError(unknown_name("system", name, SYSTEMS))
    return SYSTEMS[name](topology)
