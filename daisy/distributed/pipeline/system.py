"""The real system on Ray: start the actors, run, restart dead workers, and report."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from daisy.checkpoints import Model
from daisy.checkpoints.model import HeadsKind
from daisy.distributed.cluster import connect
from daisy.distributed.pipeline.admission import make_admissions
from daisy.distributed.pipeline.desk import Death
from daisy.distributed.pipeline.desk_actor import Collected, DeskActor, Progress, RunSetup
from daisy.distributed.pipeline.model_parts import ModelPart, check_cuts, cut_model
from daisy.distributed.pipeline.run_report import RunEndedError, RunReport, WorkerReport
from daisy.distributed.pipeline.stages import ExitSettings
from daisy.distributed.pipeline.topology import Place, Topology
from daisy.distributed.pipeline.wire import pack_waveform
from daisy.distributed.pipeline.worker import Routes
from daisy.distributed.pipeline.worker_actor import WorkerActor, WorkerSetup
from daisy.distributed.pipeline.workload import SAMPLE_RATE
from daisy.errors import UsageError

POLL_SEC = 0.1
MAX_STARTS = 5
"""Starts in a row that may fail before a worker is given up."""
START_TIMEOUT_SEC = 300.0
"""Seconds after which a worker that is not ready counts as failed: a small board takes half a minute to load torch."""
CALLS_AT_ONCE = 32
"""Concurrent calls of an actor: more than neighbours open."""
PLACE_SHARE = 0.001
"""Amount of a place's custom resource that a worker takes."""
Handle = Any


@dataclass
class _Started:
    """A running worker."""

    incarnation: int
    handle: Handle
    pid: int
    weight_bytes: int


class System:
    """Workers on Ray, ready to run; a context manager that ends them.

    Args:
        topology: the workers, sources and rules.
        model: model whose layers are distributed.
        settings: settings of exits; see `daisy.distributed.pipeline.stages.make_exit_settings`.
        heads: kind of heads whose scores decide.
        address: address of a Ray cluster ("auto", "ray://…"); None: start one here that ends with the context.
        seed: seed of all draws.
        routes: with ``routed`` offloading, each worker's share of each stage.
        device: device on which workers compute.
        keep_states: whether answers include the exit layer's states.

    Raises:
        UsageError: if Ray is missing or cannot be reached, or model and topology do not fit together.
    """

    def __init__(
        self,
        topology: Topology,
        model: Model,
        settings: ExitSettings,
        *,
        heads: HeadsKind | None = None,
        address: str | None = None,
        seed: int = 0,
        routes: Routes | None = None,
        device: str = "cpu",
        keep_states: bool = False,
    ):
        if model.backbone.config.num_layers != topology.num_layers:
            raise UsageError(
                f"the topology is for {topology.num_layers} layers, and the model has "
                f"{model.backbone.config.num_layers}"
            )
        check_cuts(model.backbone.config, [layers[-1] for layers in topology.stages])
        self.topology, self.settings = topology, settings
        self._seed, self._routes, self._device, self._keep_states = seed, routes, device, keep_states
        self._parts: dict[str, ModelPart] = {
            place.name: cut_model(model, place.first, place.last, heads) for place in topology.workers
        }
        self._connection = contextlib.ExitStack()
        self._ray = self._connection.enter_context(connect(address))
        self._workers: dict[str, _Started] = {}
        self._num_deaths = dict.fromkeys(self._parts, 0)
        self._is_over = False

    def __enter__(self) -> System:
        try:
            self._check_places(self.topology.workers)
            started = {place.name: self._start(place.name, 1) for place in self.topology.workers}
            for name, handle in started.items():
                self._workers[name] = self._await(handle, 1)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        for worker in self._workers.values():
            self._ray.kill(worker.handle)
        self._connection.close()

    def _check_places(self, workers: Sequence[Place]) -> None:
        """Refuse places that no node of the cluster has; Ray would wait for such a node to join."""
        there = self._ray.cluster_resources()
        for place in workers:
            if place.place is not None and place.place not in there:
                raise UsageError(
                    f"worker {place.name}: no node of the Ray cluster has the resource {place.place!r}: start one"
                )

    @property
    def pids(self) -> dict[str, int]:
        """Process ID of each worker."""
        return {name: worker.pid for name, worker in self._workers.items()}

    @property
    def weight_bytes(self) -> dict[str, int]:
        """Bytes of weights on each worker."""
        return {name: worker.weight_bytes for name, worker in self._workers.items()}

    def run(
        self,
        waveforms: Sequence[Tensor],
        *,
        num_tasks: int | None = None,
        seconds: float | None = None,
        rate: float = 1.0,
        level: int = 0,
        load: Sequence[tuple[float, float]] = (),
        even: bool = False,
        progress: Callable[[int], None] = lambda count: None,
        watch: Callable[[int], None] | None = None,
    ) -> RunReport:
        """Send utterances through the system.

        A system runs only once: its queues and reports are of this run.

        Args:
            waveforms: waveforms, (N_b,) each, taken in turn.
            num_tasks: tasks to admit; None: each waveform once, or as many as arrive in ``seconds``.
            seconds: time for which to admit tasks.
            rate: tasks per second of sources without a rate in the topology, initially or throughout.
            level: exit level, initially or throughout.
            load: times in seconds, each with a factor on the rate from then on.
            even: whether tasks arrive at even intervals.
            progress: called with the number of tasks answered since the last call.
            watch: called at each poll with the number of tasks answered so far; tests kill workers there.

        Returns:
            The report; its fidelity is empty (see `daisy.distributed.pipeline.fidelity`).

        Raises:
            RunEndedError: if a stage has lost its last worker for good; the error has the report of the run so far.
            UsageError: if rate, level or load are impossible, or the source's process was lost.
        """
        admission: dict[str, Any] = {
            "num_levels": len(self.settings.levels),
            "rate": rate,
            "level": level,
            "load": tuple(load),
            "even": even,
        }
        make_admissions(self.topology, **admission)  # fails here rather than in the actor
        setup = RunSetup(
            topology=self.topology,
            admission=admission,
            num_tasks=len(waveforms) if num_tasks is None and seconds is None else num_tasks,
            seconds=seconds,
            seed=self._seed,
        )
        arrays = [pack_waveform(waveform, self.settings.wire) for waveform in waveforms]
        actor = self._ray.remote(DeskActor).options(**self._place(self.topology.sources[0].worker))
        self._desk = actor.remote(setup, arrays)
        try:
            handles = self._handles()
            self._ray.get([self._connect(name, handles) for name in self._workers])
            self._ray.get(self._desk.start.remote(handles))
            reason = self._follow(progress, watch)
            report = self._report(arrays, reason)
        except self._ray.exceptions.RayError as error:
            raise UsageError(f"the source's process was lost ({_last_line(error)})") from None
        finally:
            self._ray.kill(self._desk)
        if reason:
            raise RunEndedError(report)
        return report

    def _place(self, name: str) -> dict[str, Any]:
        """Return the options of an actor that shall run where a worker does: at its place, or on this machine."""
        options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": CALLS_AT_ONCE}
        place = self.topology.worker(name).place
        if place is not None:
            return {**options, "resources": {place: PLACE_SHARE}}
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = self._ray.get_runtime_context().get_node_id()
        return {**options, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}

    def _follow(self, progress: Callable[[int], None], watch: Callable[[int], None] | None) -> str:
        """Wait until all tasks are answered, and restart dead workers; return why the run cannot continue, or ""."""
        answered = 0
        while True:
            time.sleep(POLL_SEC)
            seen: Progress = self._ray.get(self._desk.poll.remote())
            progress(seen.num_answered - answered)
            answered = seen.num_answered
            if watch is not None:
                watch(answered)
            for death in seen.deaths:
                self._num_deaths[death.worker] += 1
                self._ray.kill(self._workers[death.worker].handle)  # it may only have been slow
                if self.topology.rules.respawn_sec is not None:  # in a thread, as it takes seconds: the others work on
                    threading.Thread(target=self._replace, args=(death,), daemon=True).start()
            if seen.error or seen.is_done:
                return seen.error

    def _start(self, name: str, incarnation: int) -> Handle:
        """Start a worker's actor."""
        setup = WorkerSetup(
            name=name,
            incarnation=incarnation,
            topology=self.topology,
            settings=self.settings,
            seed=self._seed,
            routes=self._routes,
            device=self._device,
            keep_states=self._keep_states,
        )
        options = {
            **self._place(name),
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(self.topology.worker(name).threads)}},
        }
        return self._ray.remote(WorkerActor).options(**options).remote(setup, self._parts[name])

    def _await(self, handle: Handle, incarnation: int) -> _Started:
        """Wait until a worker has its weights."""
        try:
            said = self._ray.get(handle.describe.remote(), timeout=START_TIMEOUT_SEC)
        except self._ray.exceptions.GetTimeoutError:
            self._ray.kill(handle)
            raise UsageError(f"a worker was not ready within {START_TIMEOUT_SEC:g} s") from None
        except self._ray.exceptions.RayError as error:
            raise UsageError(f"a worker could not be started ({_last_line(error)})") from None
        return _Started(incarnation, handle, said["pid"], said["weight_bytes"])

    def _handles(self) -> dict[str, tuple[int, Handle]]:
        return {name: (worker.incarnation, worker.handle) for name, worker in self._workers.items()}

    def _connect(self, name: str, handles: Mapping[str, tuple[int, Handle]]) -> Any:
        """Tell a worker where its neighbours are; return the reference of that call."""
        wanted = {neighbour.name for neighbour in self.topology.neighbours_of(name)}
        mine = {other: handle for other, handle in handles.items() if other in wanted}
        return self._workers[name].handle.connect.remote(mine, self._desk)

    def _replace(self, death: Death) -> None:
        """Restart a worker and inform the others; repeat this if the worker dies before the desk knows of it."""
        name, reason = death.worker, ""
        for start in range(1, MAX_STARTS + 1):
            time.sleep(self.topology.rules.respawn_sec or 0.0)
            if self._is_over:
                return
            incarnation = death.incarnation + start
            try:
                self._check_places([self.topology.worker(name)])
                self._workers[name] = self._await(self._start(name, incarnation), incarnation)
                self._introduce(name)
                return
            except self._ray.exceptions.RayTaskError as error:  # nobody died: a call to it or the desk failed
                self._ray.kill(self._workers[name].handle)
                self._desk.refuse.remote(f"worker {name} could not be started anew ({_last_line(error)})")
                return
            except UsageError as refusal:
                reason = str(refusal)
            except self._ray.exceptions.RayError:
                self._ray.kill(self._workers[name].handle)
                reason = f"worker {name} has died {start} times as it was started"
        if not self._is_over:
            self._desk.give_up.remote(name, reason)

    def _introduce(self, name: str) -> None:
        """Connect a restarted worker with the others, in both directions."""
        handles = self._handles()
        incarnation = handles[name][0]
        self._ray.get(self._connect(name, handles))
        for other in self._workers:
            if other != name:
                self._connect(other, {name: handles[name]})
        self._ray.get(self._desk.welcome.remote(name, incarnation, handles[name][1]))

    def _report(self, arrays: Sequence[NDArray[Any]], error: str) -> RunReport:
        collected: Collected = self._ray.get(self._desk.collect.remote())
        records = collected.records
        first = min((record.admitted for record in records), default=0.0)
        return RunReport(
            seconds=(records[-1].answered - first) if records else 0.0,
            records=records,
            workers={name: self._report_worker(name, collected.done[name]) for name in self._workers},
            fidelity=[],
            work=[len(arrays[record.answer.number % len(arrays)]) / SAMPLE_RATE for record in records],
            num_admitted=collected.num_admitted,
            num_restarts=collected.num_restarts,
            num_late=collected.num_late,
            began=collected.began,
            error=error,
        )

    def _report_worker(self, name: str, told: Mapping[int, WorkerReport]) -> WorkerReport:
        """Sum the reports of a worker's incarnations; those that died count as far as they had reported."""
        worker, done = self._workers[name], dict(told)
        with contextlib.suppress(self._ray.exceptions.RayError):  # it may die at the end
            done[worker.incarnation] = self._ray.get(worker.handle.get_report.remote())
        total = WorkerReport(num_deaths=self._num_deaths[name])
        for _, report in sorted(done.items()):
            total = total.add(report)
        return total


def _last_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[-1]
