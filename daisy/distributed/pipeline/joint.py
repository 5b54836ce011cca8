"""Choose exit level and routes jointly: ours, after an idea in the abstract of DTO-EE (arXiv:2412.08284).

The abstract says that thresholds and offloading are optimised jointly for delay and accuracy; we could not read how.
Here, for each exit level, a stage's utterances are divided among its holders so that a queueing estimate of the mean
delay is minimal: each worker, and each direction of a link, is one M/M/1 queue. Then the level with the best fidelity
minus a price on delay is chosen. The choice is made once, from full runs and times of the utterances; nothing adapts
during the run.
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
"""Steps of the search for shares."""
STEP = 0.1
"""Share that may move in one step, initially."""
PRICE_PER_SEC = 0.1
"""Fidelity that one second of mean delay is worth (ours)."""
FULL_LOAD = 0.98
"""Load of a worker above which the estimate of its queue is continued as a straight line, so that overloads can be
compared."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A level, the shares, and their expected delay and fidelity."""

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
        topology: the workers and links.
        workload: utterances like those to come.
        rate: tasks per second of sources without a rate in the topology.
        levels: levels to choose from; None: all.
        wire: format of states on links.
        price_per_sec: fidelity that one second of mean delay is worth.
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
    """Return the shares of each stage that minimise the estimated delay, and that delay."""
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
    """Arrival rates, times and transfer sizes of each stage at one level."""

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
        """Estimate the mean delay of a task: waiting, service and transfer over all its stages."""
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
        """Return the seconds over a link, including queueing at ``flow`` tasks per second."""
        link = self.topology.link(one, other)
        if link is None:
            return 1e3
        seconds = self.bytes[stage] * link.sec_per_byte
        return link.delay_sec + seconds / _headroom(flow * seconds)


def _headroom(load: float) -> float:
    """Return 1 - load or, in overload, a value that keeps falling."""
    return 1 - load if load < FULL_LOAD else (1 - FULL_LOAD) / (1 + 50 * (load - FULL_LOAD))
