"""daisy noise-curve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daisy.cli.console import (
    DEFAULT_CHECKPOINT,
    Checkpoint,
    Device,
    Out,
    checked_device,
    command_line,
    errors,
    output,
    printable,
    progress_bar,
    snrs,
)
from daisy.cli.replay import Depth, Depths, Policies, Report, names_of, numbers_of, present
from daisy.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from daisy.calibration.traces import Traces


def command(
    inputs: Annotated[list[str], typer.Argument(help="Clean speech: files, folders, globs, manifests (.tsv).")],
    out: Out,
    checkpoint: Checkpoint = DEFAULT_CHECKPOINT,
    noise: Annotated[
        list[str] | None, typer.Option(help="white, pink, babble, or a folder of recorded noise; may be repeated.")
    ] = None,
    snr: Annotated[str, typer.Option(help="Ratios in dB; by default clean,20,10,5,0,-5.")] = "",
    reverberation: Annotated[str, typer.Option(help="Reverberation times in s, of simulated rooms: 0.3,0.6.")] = "",
    clipping: Annotated[str, typer.Option(help="Shares of samples that are clipped, in %: 1,10.")] = "",
    tune: Annotated[
        list[str] | None, typer.Option(help="Speech that policies are tuned on; else half of the speakers.")
    ] = None,
    speakers: Annotated[Path | None, typer.Option(help="CSV of path and speaker; else each file is its own.")] = None,
    root: Annotated[Path, typer.Option(help="Folder that the paths in --speakers are relative to.")] = Path("."),
    policies: Policies = "",
    depth: Depth = 0.6,
    depths: Depths = "0.3,0.4,0.5,0.6,0.7,0.8,0.9",
    report: Report = None,
    seed: Annotated[int, typer.Option(help="Of noise excerpts, rooms and halves.")] = 0,
    device: Device = "cpu",
) -> None:
    """Exit layers, depth and fidelity under noise: policies decided from one full run a recording and condition.

    Writes traces.csv (what daisy replay reads), study.csv and study.json; with --report, a page with figures. Losses
    are disagreement and kl_nats with the full model on the same input, clean_disagreement and loss (nats) with its
    units on the clean version. Noise is mixed at the ratio of mean powers (RMS) over the whole recording.
    """
    from daisy import _files, audio, checkpoints
    from daisy.audio import conditions
    from daisy.calibration import trace_conditions, traces
    from daisy.calibration.depth import FAMILIES, check_depth

    model = checkpoints.load(checkpoint, device=checked_device(device))
    rate = model.backbone.config.sample_rate
    kinds, recorded = trace_conditions.read_noises(noise or (), rate)
    ratios = snrs(snr or ("clean,20,10,5,0,-5" if kinds else "clean"))
    heard = conditions.make_conditions(
        kinds, ratios, numbers_of(reverberation, "--reverberation"), numbers_of(clipping, "--clipping")
    )
    for target in (depth, *numbers_of(depths, "--depths")):
        check_depth(target)
    for name in names_of(policies):
        if name not in FAMILIES:
            raise UsageError(unknown_name("policy to compare", name, FAMILIES))
    _files.check_writable(out / "study.csv")
    table: dict[str, Traces] = {}
    failed: dict[str, str] = {}
    read = 0
    sources = {"traces": inputs} | ({"tune": tune} if tune else {})
    for name, given in sources.items():
        speech = trace_conditions.read_speech(audio.find(given), speakers, root, rate)
        for reason in speech.failed.values():
            errors.print(printable(f"failed: {reason}"), soft_wrap=True)
        if tune is None and len(set(speech.groups)) < 2:
            raise UsageError("policies are tuned on half of the speakers: give two at least, or others to --tune on")
        with progress_bar() as bar:
            task = bar.add_task(name, total=len(speech.waveforms) * len({conditions.CLEAN, *heard}))
            advance = lambda count, bar=bar, task=task: bar.advance(task, count)  # noqa: E731
            table[name] = trace_conditions.run_conditions(model, speech, heard, recorded, seed=seed, progress=advance)
        traces.write_traces(table[name], out / f"{name}.csv")
        failed |= speech.failed
        read += len(speech.names)
    halves = table["traces"].halves(seed) if not tune else (table["tune"], table["traces"])
    present(
        *halves,
        out=out,
        policies=policies,
        depth=depth,
        depths=depths,
        loss="disagreement",
        report=report,
        title=f"Early exits of {Path(checkpoint).stem} under noise",
        kinds=kinds,
        snrs_db=ratios,
        command=command_line(),
    )
    output.print(f"{out / 'traces.csv'}: {len(table['traces'])} full runs", soft_wrap=True)
    if failed:
        errors.print(f"{len(failed)} of {len(failed) + read} recordings failed")
        raise typer.Exit(1)
