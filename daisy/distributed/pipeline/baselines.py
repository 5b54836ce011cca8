"""What model-distributed inference with exits is compared with, each a change of topology and rules."""

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
"""By name: ``mdi`` is the topology as it is; ``no-exits`` the same, every task running all layers; ``random`` offloads
at random; ``joint`` routes by shares that were chosen together with the exit level (`daisy.distributed.pipeline.joint`,
ours, after the idea in the abstract of DTO-EE, arXiv:2412.08284); ``data`` and ``data-exits`` give each worker the
whole model and distribute utterances; ``one-worker`` is the source's worker alone."""


def make_system(name: str, topology: Topology) -> Topology:
    """Make one of `SYSTEMS` of a topology.

    Raises:
        UsageError: on an unknown name.
    """
    if name not in SYSTEMS:
        raise UsageError(unknown_name("system", name, SYSTEMS))
    return SYSTEMS[name](topology)
