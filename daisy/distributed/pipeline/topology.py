"""A topology: which worker holds which layers, how fast the workers are, and how they are connected."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from daisy.distributed.pipeline.rules import Rules
from daisy.distributed.pipeline.worker import Neighbour
from daisy.errors import UsageError, unknown_name

HERE = "here"
"""Name of the machine of workers without a place of their own."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A worker of a topology."""

    name: str
    first: int
    """First layer that the worker holds; with layer 1 it also has the front end."""
    last: int
    speed: float | None = None
    """Emulated speed, relative to one core of the machine that the worker runs on. None: no emulation."""
    place: str | None = None
    """Custom resource of the Ray node that the worker shall run on."""
    threads: int = 1
    """Threads of torch."""

    @property
    def machine(self) -> str:
        """Machine whose cores it shares with others."""
        return self.place or HERE


@dataclass(frozen=True, kw_only=True)
class Link:
    """A link between two workers, the same in both directions; each direction has the full rate."""

    between: tuple[str, str]
    delay_sec: float = 0.0
    bytes_per_sec: float = float("inf")
    loss: float = 0.0
    """Fraction of transmissions that get lost; they are repeated, which takes the link's time again."""

    @property
    def sec_per_byte(self) -> float:
        """Seconds per byte, including repetitions."""
        return 1 / (self.bytes_per_sec * (1 - self.loss))


@dataclass(frozen=True, kw_only=True)
class Source:
    """A worker at which data come in."""

    worker: str
    rate: float | None = None
    """Tasks per second; None: the rate of the run."""
    priority: int = 0


@dataclass(frozen=True, kw_only=True)
class Topology:
    """A system of workers.

    Raises:
        UsageError: if it cannot work: a layer that no worker holds or that cannot be reached, an unknown name, an
            impossible number.
    """

    num_layers: int
    workers: tuple[Place, ...]
    links: tuple[Link, ...]
    sources: tuple[Source, ...]
    cuts: tuple[int, ...] = ()
    """Further layers after which a task may move to another worker."""
    rules: Rules = field(default_factory=Rules)
    cores: Mapping[str, int] = field(default_factory=dict)
    """Cores of a machine, shared by its workers; other machines have enough. Only the simulator reads it."""

    def __post_init__(self) -> None:
        _check(self)

    @cached_property
    def stages(self) -> tuple[range, ...]:
        """The layers of each stage: cut wherever a worker's layers begin or end, and after each of ``cuts``."""
        ends = {worker.last for worker in self.workers} | {worker.first - 1 for worker in self.workers}
        edges = sorted((ends | set(self.cuts) | {self.num_layers}) - {0})
        return tuple(range(first + 1, last + 1) for first, last in zip([0, *edges], edges, strict=False))

    def stages_of(self, name: str) -> range:
        """Return the numbers of the stages that a worker holds."""
        return self._stages_by_worker[name]

    def worker(self, name: str) -> Place:
        """Return a worker by name.

        Raises:
            UsageError: if there is none.
        """
        if name not in self._workers_by_name:
            raise UsageError(unknown_name("worker", name, self._workers_by_name))
        return self._workers_by_name[name]

    def link(self, one: str, other: str) -> Link | None:
        """Return the link between two workers, if there is one."""
        return self._links_by_worker[one].get(other)

    def takers_of(self, name: str, stage: int, among: Collection[str]) -> set[str]:
        """Return which workers of ``among`` can take a stage of a task at a worker: itself or its neighbours."""
        takers = {neighbour.name for neighbour in self.neighbours_of(name) if stage in neighbour.stages}
        return (takers | ({name} if stage in self.stages_of(name) else set())) & {*among}

    def neighbours_of(self, name: str) -> list[Neighbour]:
        """List the workers that a worker has a link to, in the form that its state machine uses."""
        return [
            Neighbour(
                name=other,
                stages=self.stages_of(other),
                delay_sec=link.delay_sec,
                sec_per_byte=link.sec_per_byte,
            )
            for other, link in self._links_by_worker[name].items()
        ]

    @cached_property
    def _workers_by_name(self) -> dict[str, Place]:
        return {worker.name: worker for worker in self.workers}

    @cached_property
    def _stages_by_worker(self) -> dict[str, range]:
        begins = {layers[0]: stage for stage, layers in enumerate(self.stages)}
        ends = {layers[-1]: stage for stage, layers in enumerate(self.stages)}
        return {worker.name: range(begins[worker.first], ends[worker.last] + 1) for worker in self.workers}

    @cached_property
    def _links_by_worker(self) -> dict[str, dict[str, Link]]:
        table: dict[str, dict[str, Link]] = {worker.name: {} for worker in self.workers}
        for link in self.links:
            one, other = link.between
            table[one].setdefault(other, link)
            table[other].setdefault(one, link)
        return table


def _check(topology: Topology) -> None:
    """Raise an error if a topology cannot work."""
    names = [worker.name for worker in topology.workers]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"a topology has at least one worker, and names only once; found {names}")
    for worker in topology.workers:
        if not 1 <= worker.first <= worker.last <= topology.num_layers:
            raise UsageError(
                f"worker {worker.name}: layers {worker.first}-{worker.last} are not of 1-{topology.num_layers}"
            )
        if worker.speed is not None and not 0 < worker.speed <= 1:
            raise UsageError(f"worker {worker.name}: speed must be above 0 and at most 1, found {worker.speed!r}")
        if worker.threads < 1:
            raise UsageError(f"worker {worker.name}: threads must be at least 1, found {worker.threads!r}")
        if worker.speed is not None and worker.threads > 1:
            raise UsageError(f"worker {worker.name}: a speed is emulated of one core, with {worker.threads} threads")
    for link in topology.links:
        where = f"link {link.between[0]} to {link.between[1]}"
        if not set(link.between) <= set(names) or link.between[0] == link.between[1]:
            raise UsageError(f"{where}: not two of the workers {', '.join(names)}")
        if not 0 <= link.delay_sec < math.inf or not link.bytes_per_sec > 0 or not 0 <= link.loss < 1:
            raise UsageError(f"{where}: delay at least 0, rate above 0, loss at least 0 and below 1 are wanted")
    if not topology.sources:
        raise UsageError("a topology has a source")
    machines = {worker.machine for worker in topology.workers}
    for machine, cores in topology.cores.items():
        if machine not in machines:
            raise UsageError(f"cores of {machine!r}: workers are on {', '.join(sorted(machines))}")
        if not isinstance(cores, int) or cores < 1:
            raise UsageError(f"cores of {machine}: a number from 1 on is wanted, found {cores!r}")
    for cut in topology.cuts:
        if not isinstance(cut, int) or not 1 <= cut < topology.num_layers:
            raise UsageError(f"cuts are layers from 1 to {topology.num_layers - 1}, found {cut!r}")
    for source in topology.sources:
        if source.worker not in names:
            raise UsageError(f"source {source.worker!r} is not one of the workers {', '.join(names)}")
        if source.rate is not None and not source.rate > 0:
            raise UsageError(f"source {source.worker}: rate must be above 0, found {source.rate!r}")
        _check_way(topology, source.worker)


def _check_way(topology: Topology, source: str) -> None:
    """Refuse a source if one of its tasks could reach a worker from which no worker can take the next stage.

    Every worker that may have computed a stage must hold the next one or have a link to a worker that does.
    """
    everybody = {worker.name for worker in topology.workers}
    at = {source}
    for stage, layers in enumerate(topology.stages):
        reached = set()
        for name in sorted(at):
            takers = topology.takers_of(name, stage, everybody)
            if not takers:
                raise UsageError(
                    f"a task at {name} could go nowhere for layers {layers[0]}-{layers[-1]}: "
                    "no worker that it has a link to holds them"
                )
            reached |= takers
        at = reached


def hold_everything(topology: Topology) -> Topology:
    """Return the same workers, each with the whole model, and links from the sources to all of them."""
    workers = tuple(replace(worker, first=1, last=topology.num_layers) for worker in topology.workers)
    links = list(topology.links)
    for source in topology.sources:
        links += _join_paths(topology, source.worker)
    return replace(topology, workers=workers, links=tuple(links), cuts=())


def _join_paths(topology: Topology, source: str) -> list[Link]:
    """Link a worker to those that it reaches through others, with the delays and times of all links on the path.

    Two such paths over the same link do not wait for each other.
    """
    paths = {source: Link(between=(source, source))}
    reached = [source]
    for name in reached:  # grows during the loop: workers with the fewest links in between come first
        for neighbour in topology.neighbours_of(name):
            if neighbour.name not in paths:
                sec_per_byte = paths[name].sec_per_byte + neighbour.sec_per_byte
                paths[neighbour.name] = Link(
                    between=(source, neighbour.name),
                    delay_sec=paths[name].delay_sec + neighbour.delay_sec,
                    bytes_per_sec=1 / sec_per_byte if sec_per_byte else float("inf"),
                )
                reached.append(neighbour.name)
    return [path for name, path in paths.items() if name != source and topology.link(source, name) is None]


def keep_source_only(topology: Topology) -> Topology:
    """Return the first source's worker alone, with the whole model."""
    source = topology.sources[0]
    worker = replace(topology.worker(source.worker), first=1, last=topology.num_layers)
    cores = {machine: count for machine, count in topology.cores.items() if machine == worker.machine}
    return replace(topology, workers=(worker,), links=(), sources=(source,), cuts=(), cores=cores)
