"""Exit level and routes chosen together: ours, after the idea that DTO-EE's abstract tells (arXiv:2412.08284).

That abstract says that thresholds and offloading are optimised jointly for delay and accuracy; how could not be read.
Here a stage's utterances are shared among those who hold it so that a queueing estimate of the mean delay is least, for
each exit level: each worker, and each direction of a link, is one M/M/1 queue. Then the level is taken whose fidelity
less a price on delay is best. The choice is made once, from the utterances' full runs and times; nothing adapts while
it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from daisy.distributed.pipeline.rules import RUN_ALL
from daisy.distributed.pipeline.topology import Topology
from daisy.distributed.pipeline.worker import Routes
from daisy.distributed.pipeline.workload import Wire, Workload

STEPS = 400
"""Of the search for shares."""
STEP = 0.1
"""Share that may move at a step, at first."""
PRICE_PER_SEC = 0.1
"""Fidelity that a second of mean delay is worth (ours)."""
FULL_LOAD = 0.98
"""Of a worker, beyond which its queue's estimate goes on as a straight line, so that overload can be compared."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A level, shares, and what they were expected to do."""

    level: int
    routes: Routes
    delay_sec: float
    fidelity: float


def choose_jointly(
    topology: Topology,
    workload: Workload,
    rate: float,
    *,
    levels: Sequence[int] | None = None,
    wire: Wire = "float32",
    price_per_sec: float = PRICE_PER_SEC,
) -> Choice:
    """Choose exit level and routes.

    Args:
        topology: the workers.
        workload: utterances like those to come.
        rate: tasks a second of sources that the topology gives none.
        levels: to choose from; where None all.
        wire: how states travel.
        price_per_sec: fidelity that a second of mean delay is worth.
    """
    if levels is None:
        levels = range(workload.num_levels) if topology.rules.exits else [RUN_ALL]
    choices = []
    for level in levels:
        routes, delay = _share_out(topology, workload, rate, level, wire)
        fidelity = workload.mean_fidelity(level)
        choices.append(Choice(level=level, routes=routes, delay_sec=delay, fidelity=fidelity))
    return max(choices, key=lambda choice: choice.fidelity - price_per_sec * choice.delay_sec)


def _share_out(
    topology: Topology, workload: Workload, rate: float, level: int, wire: Wire
) -> tuple[dict[int, dict[str, float]], float]:
    """Shares of each stage that make the estimated delay least, and that delay."""
    flow = _Flow(topology, workload, rate, level, wire)
    shares = {stage: {name: 1 / len(holders) for name in holders} for stage, holders in enumerate(flow.holders)}
    best, step = flow.delay(shares), STEP
    for _ in range(STEPS):
        improved = False
        for stage, holders in enumerate(flow.holders):
            for giver in holders:
                for taker in holders:
                    moved = min(step, shares[stage][giver])
                    if giver == taker or moved <= 0:
                        continue
                    tried = {**shares[stage]}
                    tried[giver], tried[taker] = tried[giver] - moved, tried[taker] + moved
                    delay = flow.delay({**shares, stage: tried})
                    if delay < best - 1e-12:
                        shares[stage], best, improved = tried, delay, True
        if not improved:
            step /= 2
            if step < 1e-3:
                break
    return shares, best


class _Flow:
    """What is known of a level: arrivals at each stage, times, transfers."""

    def __init__(self, topology: Topology, workload: Workload, rate: float, level: int, wire: Wire):
        rates = {source.worker: source.rate or rate for source in topology.sources}
        self.topology, self.rate = topology, sum(rates.values())
        self.sources = {name: part / self.rate for name, part in rates.items()}
        stages = topology.stages
        self.holders = [
            [worker.name for worker in topology.workers if stage in topology.stages_of(worker.name)]
            for stage in range(len(stages))
        ]
        n = len(workload.names)
        self.arrivals = [self.rate * workload.survival(level, layers[0] - 1) for layers in stages]
        self.seconds, self.bytes = [], []
        for stage, layers in enumerate(stages):
            who = [i for i in range(n) if workload.exit_layer(level, i) >= layers[0]] or list(range(n))
            exits = {i: max(workload.exit_layer(level, i), layers[0]) for i in who}
            self.seconds.append(sum(workload.stage_seconds(i, layers, exits[i]) for i in who) / len(who))
            self.bytes.append(sum(workload.wire_bytes(i, stage, wire) for i in who) / len(who))
        self.speed = {worker.name: worker.speed or 1.0 for worker in topology.workers}

    def delay(self, shares: dict[int, dict[str, float]]) -> float:
        """Estimate the mean delay of a task: waiting, service and transfer at all its stages."""
        load = dict.fromkeys(self.speed, 0.0)
        for stage, by_worker in shares.items():
            for name, share in by_worker.items():
                load[name] += share * self.arrivals[stage] * self.seconds[stage] / self.speed[name]
        total, before = 0.0, self.sources
        for stage, by_worker in shares.items():
            for name, share in by_worker.items():
                busy = self.seconds[stage] / self.speed[name] / _headroom(load[name])
                total += self.arrivals[stage] * share * busy
                for other, part in before.items():
                    if other != name:
                        flow = self.arrivals[stage] * part * share
                        total += flow * self._transfer(other, name, stage, flow)
            before = by_worker
        return total / self.rate

    def _transfer(self, one: str, other: str, stage: int, flow: float) -> float:
        """Seconds over a link, with the wait of ``flow`` tasks a second for each other."""
        link = self.topology.link(one, other)
        if link is None:
            return 1e3
        seconds = self.bytes[stage] * link.sec_per_byte
        return link.delay_sec + seconds / _headroom(flow * seconds)


def _headroom(load: float) -> float:
    """1 - load, and in overload something that still falls."""
    return 1 - load if load < FULL_LOAD else (1 - FULL_LOAD) / (1 + 50 * (load - FULL_LOAD))
