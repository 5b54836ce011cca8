"""daisy mdi."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from daisy.cli.console import end_with_failures, format_command_line, say, say_table, warn_of_failures, warn_of_rest
from daisy.cli.options import DEFAULT_CHECKPOINT, Checkpoint, Device, check_device, parse_numbers
from daisy.cli.progress import track
from daisy.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daisy.calibration.trace_conditions import Speech
    from daisy.calibration.traces import Traces
    from daisy.checkpoints import Model
    from daisy.distributed.pipeline.preparation import Prepared
    from daisy.distributed.pipeline.run_report import RunReport
    from daisy.distributed.pipeline.topology import Topology
    from daisy.distributed.pipeline.worker import Routes
    from daisy.distributed.pipeline.workload import Workload

TopologyFile = Annotated[Path, typer.Argument(metavar="TOPOLOGY.yaml", help="Workers, their layers, and links.")]
Inputs = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders, globs or manifests (.tsv, .jsonl); with --simulate also a table of full runs (.csv)."
    ),
]
System = Annotated[
    str,
    typer.Option(
        help="mdi, or a system to compare it with: no-exits, random, joint, data, data-exits, one-worker, "
        "one-worker-no-exits."
    ),
]
Simulate = Annotated[
    bool,
    typer.Option(
        "--simulate",
        help="Simulate the system, with layer times measured here; for a table's runs they are 1 ms per layer and "
        "second of audio. Fidelity does not include the effect of --wire.",
    ),
]
Heads = Annotated[
    Literal["units", "ctc"] | None,
    typer.Option(help="Whose scores the policy reads; for a recogniser the default is the exits that write texts."),
]
PolicyName = Annotated[str, typer.Option("--policy", "-p", help="Policy that decides where utterances exit.")]
Depths = Annotated[
    str, typer.Option(help="Exit levels: mean shares of the layers to which the policy is set on the inputs.")
]
Level = Annotated[int, typer.Option(min=0, help="Exit level, initially or throughout; 0 is the deepest.")]
Adapt = Annotated[
    Literal["fixed", "rate", "threshold"] | None,
    typer.Option(help="What adapts to the source's queues: nothing, rate, or exit level; default: as in the topology."),
]
Rate = Annotated[float, typer.Option(help="Utterances per second that arrive, initially or throughout.")]
Load = Annotated[
    str, typer.Option(metavar="SEC:TIMES,...", help="Multiply the rate from a time on, such as 30:2,60:0.5.")
]
Tasks = Annotated[int, typer.Option(min=0, help="Utterances to admit, the inputs in turn; 0: each once.")]
WireType = Annotated[Literal["float32", "bfloat16", "int8"], typer.Option("--wire", help="Format of sent states.")]
Kill = Annotated[
    str, typer.Option(metavar="SEC:WORKER,...", help="With --simulate: workers that die, such as 10:attic.")
]
Address = Annotated[str, typer.Option(help="A Ray cluster, such as auto; default: one started on this machine.")]
OutFolder = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for mdi.json, mdi.png and mdi.html.")]
Format = Annotated[Literal["table", "json"], typer.Option(help="Format of the printed report.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of arrivals, draws and losses.")]


def command(
    topology: TopologyFile,
    inputs: Inputs,
    checkpoint: Checkpoint = DEFAULT_CHECKPOINT,
    system: System = "mdi",
    simulate: Simulate = False,
    heads: Heads = None,
    policy: PolicyName = "forecast",
    depths: Depths = "0.8,0.6,0.4",
    level: Level = 0,
    adapt: Adapt = None,
    rate: Rate = 1.0,
    load: Load = "",
    tasks: Tasks = 0,
    wire: WireType = "float32",
    kill: Kill = "",
    address: Address = "",
    out: OutFolder = None,
    format: Format = "table",
    device: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Run utterances through workers that hold some layers each.

    Prints throughput, latency, statistics of each worker, and fidelity: the share of frames whose unit is the full
    model's or, for a recogniser, 1 minus the edit distance to its last exit's text, per character of that text.
    The workers are Ray actors, here or on a cluster; speeds and links in the topology are emulated. With --simulate
    only the rules run, in simulated time. A run that cannot continue reports what was answered until then. Exit status
    1: some recordings could not be read; 2: the run could not continue.
    """
    from daisy import _files, checkpoints
    from daisy.distributed.pipeline.admission import make_admissions
    from daisy.distributed.pipeline.baselines import make_system
    from daisy.distributed.pipeline.model_parts import check_cuts
    from daisy.distributed.pipeline.run_report import RunEndedError
    from daisy.distributed.pipeline.topology_file import read_topology
    from daisy.evaluation.html import check_report_packages

    if kill and not simulate:
        raise UsageError("--kill is of --simulate")
    if out is not None:
        check_report_packages()
        _files.check_writable(out / "mdi.json")
    model = checkpoints.load(checkpoint, device=check_device(device))
    layout = make_system(system, read_topology(topology, model.backbone.config.num_layers))
    check_cuts(model.backbone.config, [layers[-1] for layers in layout.stages])
    if adapt is not None:
        layout = _with_admission(layout, adapt)
    options: dict[str, Any] = {
        "rate": rate,
        "level": level,
        "load": [(when, float(times)) for when, times in _parse_times(load, "--load")],
    }
    shares = parse_numbers(depths, "--depths")
    if layout.rules.offloading == "routed" and level:
        raise UsageError(f"{system} chooses the level: leave --level out")
    make_admissions(layout, num_levels=len(shares), **options)  # fails before anything runs
    kills = _parse_times(kill, "--kill")
    for _, name in kills:
        layout.worker(name)
    of_levels: dict[str, Any] = {
        "heads": heads or ("units" if model.ctc is None else "ctc"),
        "policy": policy,
        "depths": shares,
        "wire": wire,
    }
    failed: dict[str, str] = {}
    ended: RunEndedError | None = None
    try:
        if simulate:
            workload, failed = _make_workload(model, inputs, of_levels)
            options["kills"] = kills
            report = _simulate(layout, workload, options, tasks, wire, seed)
        else:
            prepared, failed = _prepare(model, inputs, of_levels)
            report = _run(layout, model, prepared, options, tasks, address or None, device, seed)
    except RunEndedError as error:
        ended, report = error, error.report
    report.settings = {
        "system": system,
        "simulated": simulate,
        "checkpoint": Path(checkpoint).stem,
        **of_levels,
        "depths": sorted(shares, reverse=True),
        "admission": layout.rules.admission,
        "layer_times": "nominal" if simulate and _is_table(inputs) else "measured",
        "rate": rate,
        "seed": seed,
    }
    _say(report, format)
    if out is not None:
        _write(report, out, topology)
    warn_of_failures(failed.values())
    if ended is not None:
        raise ended
    end_with_failures(len(failed), len(report.records))


def _with_admission(layout: Topology, adapt: str) -> Topology:
    import dataclasses

    return dataclasses.replace(layout, rules=layout.rules.replace(admission=adapt))


def _parse_times(text: str, option: str) -> list[tuple[float, str]]:
    """Turn "10:a,20:b" into [(10.0, "a"), (20.0, "b")]."""
    pairs = []
    for part in filter(None, text.split(",")):
        when, colon, what = part.partition(":")
        try:
            pairs.append((float(when), what.strip()))
            if option == "--load":
                float(what)
        except ValueError:
            colon = ""
        if not colon or not what.strip():
            raise UsageError(f"{option} takes seconds and what then, such as 10:2,20:0.5, found {part!r}")
    return pairs


def _read(model: Model, inputs: Sequence[str]) -> Speech:
    from daisy import audio
    from daisy.calibration.trace_conditions import read_speech

    config = model.backbone.config
    findings = audio.search(inputs)
    warn_of_rest(findings)
    return read_speech(findings.recordings, None, Path("."), config.sample_rate, config.frame_span, config.max_samples)


def _prepare(model: Model, inputs: Sequence[str], levels: dict[str, Any]) -> tuple[Prepared, dict[str, str]]:
    """Run every layer on each input once, and set the exit levels."""
    from daisy.distributed.pipeline.preparation import prepare

    speech = _read(model, inputs)
    with track("full runs", len(speech.names)) as advance:
        prepared = prepare(model, speech.waveforms, speech.names, progress=advance, **levels)
    return prepared, speech.failed


def _is_table(inputs: Sequence[str]) -> bool:
    return len(inputs) == 1 and inputs[0].endswith(".csv")


def _make_workload(model: Model, inputs: Sequence[str], levels: dict[str, Any]) -> tuple[Workload, dict[str, str]]:
    """Create the simulator's workload from a table of full runs, or from recordings that are run here."""
    from daisy.calibration.traces import read_traces
    from daisy.distributed.pipeline.preparation import LOSSES, REPEATS, make_measured_workload, measure_seconds
    from daisy.distributed.pipeline.workload import make_levels, make_workload

    if _is_table(inputs):
        traces: Traces = read_traces(Path(inputs[0]))
        loss = next((name for name in LOSSES.values() if name in traces.losses), next(iter(traces.losses), ""))
        of_traces = make_levels(levels["policy"], traces, levels["depths"], loss)
        config = model.backbone.config
        return make_workload(traces, of_traces, width=config.width, samples_per_frame=config.frame_hop, loss=loss), {}
    prepared, failed = _prepare(model, inputs, levels)
    with track("timing layers", REPEATS * len(prepared.waveforms)) as advance:
        seconds = measure_seconds(model, prepared, advance)
    return make_measured_workload(model, prepared, seconds), failed


def _simulate(
    layout: Topology, workload: Workload, options: dict[str, Any], tasks: int, wire: Any, seed: int
) -> RunReport:
    from daisy.distributed.pipeline.simulation import Simulation

    routes = _route(layout, workload, options, wire)
    simulation = Simulation(layout, workload, wire=wire, seed=seed, routes=routes, **options)
    return simulation.run(num_tasks=tasks or len(workload.names))


def _route(layout: Topology, workload: Workload, options: dict[str, Any], wire: Any) -> Routes | None:
    """Choose level and shares jointly if the system is routed."""
    from daisy.distributed.pipeline.joint import choose_jointly

    if layout.rules.offloading != "routed":
        return None
    choice = choose_jointly(layout, workload, options["rate"], wire=wire)
    options["level"] = max(choice.level, 0)
    return choice.routes


def _run(
    layout: Topology,
    model: Model,
    prepared: Prepared,
    options: dict[str, Any],
    tasks: int,
    address: str | None,
    device: str,
    seed: int,
) -> RunReport:
    """Run the real system, and measure its fidelity."""
    from daisy.distributed.pipeline.fidelity import measure_fidelity
    from daisy.distributed.pipeline.preparation import make_measured_workload, measure_seconds
    from daisy.distributed.pipeline.run_report import RunEndedError
    from daisy.distributed.pipeline.system import System

    routes = None
    if layout.rules.offloading == "routed":
        workload = make_measured_workload(model, prepared, measure_seconds(model, prepared))
        routes = _route(layout, workload, options, prepared.settings.wire)
    count = tasks or len(prepared.waveforms)
    with (
        System(
            layout,
            model,
            prepared.settings,
            heads=prepared.heads,
            address=address,
            seed=seed,
            routes=routes,
            device=device,
        ) as running,
        track("answered", count) as advance,
    ):
        try:
            report = running.run(prepared.waveforms, num_tasks=count, progress=advance, **options)
        except RunEndedError as error:
            error.report.fidelity = measure_fidelity(error.report, prepared, model.tokens)
            raise
    report.fidelity = measure_fidelity(report, prepared, model.tokens)
    return report


def _say(report: RunReport, format: str) -> None:
    import json

    from rich.table import Table

    from daisy.distributed.pipeline.presentation import WORKER_COLUMNS, describe, list_workers

    if format == "json":
        say(json.dumps(report.to_json(), indent=2))
        return
    table = Table(*WORKER_COLUMNS, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in list_workers(report):
        table.add_row(*row)
    say_table(table)
    for line in describe(report):
        say(line)


def _write(report: RunReport, out: Path, topology: Path) -> None:
    """Write the report as JSON, figure and page."""
    from daisy import _files
    from daisy.distributed.pipeline.presentation import describe, draw_latencies, make_sections
    from daisy.evaluation.figures import save
    from daisy.evaluation.html import Page, write_page

    _files.write_json(out / "mdi.json", report.to_json())
    save(draw_latencies(report), out / "mdi.png")
    write_page(
        Page(
            title=f"Model-distributed inference: {topology.stem}",
            summary=describe(report)[0],
            command=format_command_line(),
            sections=make_sections(report),
        ),
        out / "mdi.html",
    )
    say(f"{out}: mdi.json, mdi.png, mdi.html")
