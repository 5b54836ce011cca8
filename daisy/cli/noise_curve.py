"""daisy noise-curve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daisy.cli.console import end_with_failures, say, warn_of_failures, warn_of_rest
from daisy.cli.full_runs import FullRuns
from daisy.cli.options import (
    DEFAULT_CHECKPOINT,
    SNRS_DB,
    ChannelText,
    Checkpoint,
    Depth,
    Depths,
    Device,
    Noise,
    Out,
    Policies,
    Report,
    Root,
    Speakers,
    Strict,
    check_device,
    parse_channel,
    parse_names,
    parse_numbers,
    parse_snrs,
)
from daisy.cli.study_output import Comparison
from daisy.cli.texts import UNIT_LOSSES, LossName, Reference, choose_loss, make_text_task
from daisy.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daisy.audio import Channel, Recording
    from daisy.calibration.trace_conditions import Speech
    from daisy.calibration.traces import Traces
    from daisy.checkpoints import Model
    from daisy.models.kinds import AnyHeads

Inputs = Annotated[list[str], typer.Argument(help="Clean speech: files, folders, globs, manifests (.tsv, .jsonl).")]
Tune = Annotated[list[str] | None, typer.Option(help="Other speech to tune policies on; default: half the speakers.")]
Snr = Annotated[str, typer.Option(help="Signal-to-noise ratios in dB; default: clean,20,10,5,0,-5.")]
Reverberation = Annotated[str, typer.Option(help="Reverberation times of simulated rooms in s, such as 0.3,0.6.")]
Clipping = Annotated[str, typer.Option(help="Shares of samples that are clipped, in %, such as 1,10.")]
Loss = Annotated[
    LossName | None,
    typer.Option(
        help="Loss by which policies are compared. Default: disagreement; for recognisers text_disagreement, or "
        "with --reference word_errors."
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of noise excerpts, rooms and halves.")]


def command(
    inputs: Inputs,
    out: Out,
    checkpoint: Checkpoint = DEFAULT_CHECKPOINT,
    noise: Noise = None,
    snr: Snr = "",
    reverberation: Reverberation = "",
    clipping: Clipping = "",
    tune: Tune = None,
    speakers: Speakers = None,
    root: Root = Path("."),
    policies: Policies = "",
    loss: Loss = None,
    reference: Reference = None,
    depth: Depth = 0.6,
    depths: Depths = "",
    report: Report = None,
    channel: ChannelText = "mean",
    seed: Seed = 0,
    strict: Strict = False,
    device: Device = "cpu",
) -> None:
    """Measure exit layers, depth and fidelity under noise.

    Each recording runs once in each condition with all layers, and policies are decided from these full runs. Writes
    traces.csv (the input of daisy replay), study.csv and study.json; with --report, a page with figures. traces.csv has
    the losses disagreement and kl_nats relative to the full model on the same input, and clean_disagreement and loss
    (nats) relative to its units on the clean version. For recognisers they are text_disagreement relative to the last
    exit's text, clean_text_disagreement relative to its text of the clean version, and with --reference word_errors and
    character_errors, summed before they are divided; scores of heads on units are added as unit_entropy and so on.
    --loss takes none of the losses relative to the clean version: to compare by them use daisy replay traces.csv --loss
    clean_disagreement. Noise is mixed at the ratio of mean powers (RMS) over the whole recording. A stopped command
    resumes from the runs that it has made. Exit status 1: some recordings could not be read, and were left out.
    """
    from daisy import checkpoints
    from daisy.audio.conditions import make_conditions
    from daisy.calibration.trace_conditions import read_noises
    from daisy.calibration.traces import write_traces

    model = checkpoints.load(checkpoint, device=check_device(device))
    compared = choose_loss(model, loss, reference, "--loss", "word_errors")
    rate = model.backbone.config.sample_rate
    noises = read_noises(noise or (), rate, strict=strict)
    warn_of_failures(noises.failed.values())
    snrs_db = parse_snrs(snr) or (list(SNRS_DB) if noises.kinds else [None])
    seconds, percent = parse_numbers(reverberation, "--reverberation"), parse_numbers(clipping, "--clipping")
    conditions = make_conditions(noises.kinds, snrs_db, seconds, percent)
    comparison = Comparison(
        out=out,
        policies=policies,
        depth=depth,
        depths=depths,
        report=report,
        title=f"Early exits of {Path(checkpoint).stem} under noise",
        loss=compared,
        kinds=noises.kinds,
        snrs_db=snrs_db,
    )
    _check_comparison(comparison, model.heads if compared in UNIT_LOSSES else model.ctc)
    heard = parse_channel(channel)
    traces: dict[str, Traces] = {}
    num_failed, num_read = len(noises.failed), noises.count()
    with FullRuns() as runs:
        for name, texts in {"tune": tune, "traces": inputs}.items():
            if texts:
                speech, recordings = _read_speech(texts, speakers, root, model, heard, is_split=not tune, strict=strict)
                num_failed += len(speech.failed)
                num_read += len(speech.names)
                task = None
                if compared not in UNIT_LOSSES:
                    task = make_text_task(
                        model,
                        speech,
                        recordings,
                        reference,
                        root,
                        with_units=model.heads is not None,
                        policies=parse_names(policies),
                    )
                traces[name] = runs.run(
                    name,
                    model,
                    speech,
                    conditions,
                    noises,
                    path=out / f"{name}.full-runs",
                    checkpoint=checkpoints.digest(checkpoint),
                    task=task,
                    seed=seed,
                )
                write_traces(traces[name], out / f"{name}.csv")
        comparison.run(*(traces.values() if tune else traces["traces"].halves(seed)))
    say(f"{out / 'traces.csv'}: {len(traces['traces'])} full runs")
    end_with_failures(num_failed, num_read)


def _check_comparison(comparison: Comparison, heads: AnyHeads | None) -> None:
    """Check before the long runs that the comparison is possible and its files can be written.

    Raises:
        UsageError: if a policy is unknown, or as `Comparison.check` does.
        PolicyError: if a depth is invalid.
        OutputError: if a file cannot be written.
    """
    from daisy.calibration.families import FAMILIES, TEXT_FAMILIES, check_family

    for name in parse_names(comparison.policies):
        if name not in (known := (*FAMILIES, *TEXT_FAMILIES)):
            raise UsageError(unknown_name("policy to compare", name, known))
        if heads is not None:
            check_family(name, heads)
    comparison.check()  # last, as it creates the folder


def _read_speech(
    texts: Sequence[str],
    speakers: Path | None,
    root: Path,
    model: Model,
    channel: Channel,
    *,
    is_split: bool,
    strict: bool,
) -> tuple[Speech, Sequence[Recording]]:
    """Read recordings, and list all that were requested. Speakers are split if policies are tuned on half of them.

    Raises:
        UsageError: if there are not enough speakers for that.
    """
    from daisy import audio
    from daisy.calibration.trace_conditions import read_speech

    config, findings = model.backbone.config, audio.search(texts)
    recordings = audio.take_channels(findings.recordings, channel)
    speech = read_speech(
        recordings, speakers, root, config.sample_rate, config.frame_span, config.max_samples, strict=strict
    )
    warn_of_rest(findings)
    warn_of_failures(speech.failed.values())
    if is_split and len(set(speech.groups)) < 2:
        raise UsageError("policies are tuned on half of the speakers: give two at least, or others to --tune on")
    return speech, recordings
