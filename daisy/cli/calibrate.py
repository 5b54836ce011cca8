"""daisy calibrate."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from daisy.cli.console import end_with_failures, say, warn, warn_of_failures, warn_of_rest
from daisy.cli.full_runs import FullRuns, name_full_runs
from daisy.cli.goals import Calibration, DepthGoal, RiskGoal, Units, choose_goal
from daisy.cli.options import (
    DEFAULT_CHECKPOINT,
    DEFAULT_POLICY,
    ChannelText,
    Checkpoint,
    Device,
    Noise,
    Root,
    Speakers,
    Strict,
    check_device,
    parse_channel,
    parse_snrs,
)
from daisy.cli.texts import UNIT_LOSSES, LossName, Reference, choose_loss, make_text_task
from daisy.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from daisy.calibration.trace_conditions import Speech
    from daisy.calibration.traces import Traces
    from daisy.checkpoints import Model
    from daisy.checkpoints.model import HeadsKind
    from daisy.evaluation.comparison import Evaluation

MAX_TIMED = 20
"""Number of recordings on which layers are timed."""
FEW_SPEAKERS = 10
"""Number of speakers below which a learnt policy gets a note."""

Inputs = Annotated[
    list[str], typer.Argument(help="Unlabelled speech: files, folders, globs, manifests (.tsv, .jsonl).")
]
PolicyFile = Annotated[Path, typer.Option("--out", "-o", help="The policy file to write (.json).")]
PolicyName = Annotated[
    str,
    typer.Option(
        "--policy",
        "-p",
        help="Which policy to set: entropy, regressed, confidence, margin, patience, agreement, forecast, plateau, "
        "regressed_plateau or fixed; of a recogniser also sentence_confidence, posterior or text_patience.",
    ),
]
MeanDepth = Annotated[float | None, typer.Option(help="Mean executed share of the layers to reach, such as 0.6.")]
InTime = Annotated[bool, typer.Option("--time", help="Count --depth in measured time, not in layers.")]
KeptUnits = Annotated[
    Units,
    typer.Option(
        "--units",
        help="The full model's units, or a recogniser's text, that forecast or agreement learns to keep: those on the "
        "same input, on the clean recording, or both. In loud noise deeper layers do not recover those of the clean "
        "recording, so with `clean` noisy recordings exit early.",
    ),
]
Risk = Annotated[float | None, typer.Option(help="Find the cheapest setting whose risk stays below this.")]
Delta = Annotated[float, typer.Option(help="Probability with which the risk may be above --risk.")]
Method = Annotated[
    Literal["betting", "hoeffding-bentkus", "conformal"],
    typer.Option(help="How the risk is bounded; conformal bounds its expectation and has no --delta."),
]
Loss = Annotated[
    LossName | None,
    typer.Option(
        help="The risk: frames whose unit is not the full model's (disagreement), or divergence from its distribution "
        "(kl_nats); for recognisers edits to the last exit's text (text_disagreement), or errors in excess of its own. "
        "Default: disagreement; for recognisers text_disagreement, or with --reference character_errors."
    ),
]
Heads = Annotated[
    Literal["ctc", "units"] | None,
    typer.Option(help="For a recogniser, whose scores the policy reads: its exits' (ctc), or those of heads on units."),
]
Ceiling = Annotated[float, typer.Option(help="Nats to which a divergence is clipped; the risk is a share of it.")]
Snr = Annotated[
    str, typer.Option(help="Conditions to run: clean and SNRs in dB, such as clean,20,10,0. A risk holds in each.")
]
ScoreStride = Annotated[int, typer.Option(min=1, help="Let the exit heads look only at every n-th frame.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of noise excerpts, and of the split that certifies a risk.")]
FullRunsFile = Annotated[
    Path | None,
    typer.Option(
        "--full-runs", help="Keep the full runs in this file, also for other goals and policies; otherwise until done."
    ),
]


def command(
    inputs: Inputs,
    out: PolicyFile,
    checkpoint: Checkpoint = DEFAULT_CHECKPOINT,
    policy: PolicyName = DEFAULT_POLICY,
    depth: MeanDepth = None,
    time: InTime = False,
    units: KeptUnits = "same",
    risk: Risk = None,
    delta: Delta = 0.1,
    method: Method = "betting",
    of: Loss = None,
    reference: Reference = None,
    heads: Heads = None,
    ceiling: Ceiling = 4.0,
    snr: Snr = "clean",
    noise: Noise = None,
    speakers: Speakers = None,
    root: Root = Path("."),
    score_stride: ScoreStride = 1,
    channel: ChannelText = "mean",
    seed: Seed = 0,
    full_runs: FullRunsFile = None,
    strict: Strict = False,
    device: Device = "cpu",
) -> None:
    """Set a policy on unlabelled audio, for a depth or for a risk.

    Writes a policy file for daisy extract --policy: with --depth its mean exit is at that share of the layers, with
    --risk it is the cheapest setting whose risk stays below that, with a statistical guarantee. Each recording runs
    once in each condition with all layers; a stopped command resumes from the runs that it has made. For a recogniser
    texts are compared, and the file is for daisy transcribe, unless --of is a loss of units. Exit status 1: some
    recordings could not be read, and were left out.
    """
    from daisy import _files, audio, checkpoints
    from daisy.audio.conditions import make_conditions
    from daisy.calibration.families import check_family
    from daisy.calibration.text_tracing import choose_unit_scores
    from daisy.calibration.trace_conditions import read_noises, read_speech

    goal = choose_goal(
        depth=depth, in_time=time, units=units, risk=risk, delta=delta, method=method, loss=of or "", ceiling=ceiling
    )
    _check_policy(policy, units)
    if full_runs is not None and os.path.realpath(full_runs) == os.path.realpath(out):
        raise UsageError(f"--full-runs {full_runs}: is the policy file too: give it a file of its own")
    model = checkpoints.load(checkpoint, device=check_device(device))
    loss = choose_loss(model, of, reference, "--of", "character_errors")
    goal = dataclasses.replace(goal, loss=loss)
    reads = _choose_heads(model, goal, heads, score_stride)
    if scored := model.ctc if reads == "ctc" else model.heads:
        check_family(policy, scored)
    config = model.backbone.config
    rate = config.sample_rate
    noises = read_noises(noise or (), rate, strict=strict)
    conditions = make_conditions(noises.kinds, parse_snrs(snr))
    findings = audio.search(inputs)
    recordings = audio.take_channels(findings.recordings, parse_channel(channel))
    speech = read_speech(recordings, speakers, root, rate, config.frame_span, config.max_samples, strict=strict)
    warn_of_failures([*noises.failed.values(), *speech.failed.values()])
    goal.check(len(set(speech.groups)))
    _files.check_writable(out)
    task = None
    if reads is not None:
        names = (policy,)
        task = make_text_task(model, speech, recordings, reference, root, with_units=reads == "units", policies=names)
    with FullRuns(stay=full_runs is not None) as runs:
        traces = runs.run(
            "full runs",
            model,
            speech,
            conditions,
            noises,
            path=full_runs or name_full_runs(out),
            checkpoint=checkpoints.digest(checkpoint),
            score_stride=score_stride,
            task=task,
            seed=seed,
        )
        if reads == "units":
            traces = choose_unit_scores(traces)
        if isinstance(goal, DepthGoal) and goal.in_time:
            traces = _count_costs_in_time(traces, model, speech, policy, goal.loss, reads, score_stride)
        calibration = goal.calibrate(policy, traces, seed)
        attained = _evaluate(calibration)
        target = {"conditions": [condition.name for condition in conditions], "seed": seed, **goal.to_json()}
        _write(out, calibration, target, attained, checkpoint, model, speech, reads, score_stride)
    if calibration.note:
        say(calibration.note)
    about = _describe_intervals(len(set(speech.groups)), has_speakers=speakers is not None)
    _say_attained(attained, calibration.certified, "time" if time else "layers", loss, about)
    if calibration.policy.name == policy:  # rather than never
        _warn_of_few_speakers(policy, speech)
    if speakers is None and isinstance(goal, RiskGoal):
        warn(
            "note: without --speakers each recording counts as a speaker of its own: the risk is bounded if that is so"
        )
    if isinstance(goal, RiskGoal) and "babble" in noises.kinds:
        warn("note: babble is made of the other recordings: the risk is bounded if their speakers count as independent")
    say(f"{out}: policy {calibration.policy.name} for {Path(checkpoint).stem}")
    warn_of_rest(findings)
    end_with_failures(len(noises.failed) + len(speech.failed), noises.count() + len(speech.names))


def _check_policy(policy: str, units: Units) -> None:
    from daisy.calibration.families import CALIBRATED_FAMILIES, FULL_MODEL_FAMILIES

    if policy not in CALIBRATED_FAMILIES:
        raise UsageError(unknown_name("policy to calibrate", policy, CALIBRATED_FAMILIES))
    if units != "same" and policy not in FULL_MODEL_FAMILIES:
        raise UsageError(
            f"--units goes with policies that learn units ({', '.join(FULL_MODEL_FAMILIES)}), not {policy}"
        )


def _choose_heads(
    model: Model, goal: DepthGoal | RiskGoal, heads: HeadsKind | None, score_stride: int
) -> HeadsKind | None:
    """Choose whose scores decide when a recogniser exits; return None if units rather than texts are compared."""
    if goal.loss in UNIT_LOSSES:
        if heads == "ctc":
            model.exit_heads(heads)  # raises an error if there are none
            raise UsageError(f"--heads ctc needs a loss of texts, and --of {goal.loss} is one of units")
        return None
    if heads != "units" and score_stride > 1:
        raise UsageError("--score-stride is of heads on units: exits that write text look at every frame")
    return heads or "ctc"


def _count_costs_in_time(
    traces: Traces,
    model: Model,
    speech: Speech,
    policy: str,
    loss: str,
    reads: HeadsKind | None,
    score_stride: int,
) -> Traces:
    """Replace the traces' costs by measured seconds of the layers on this machine."""
    from daisy.calibration import cost
    from daisy.calibration.families import fit_family

    sample = speech.waveforms[:: -(-len(speech.waveforms) // MAX_TIMED)]
    scores = fit_family(policy, traces, loss).at(0.5).reads
    heads = model.heads if reads is None else model.exit_heads(reads)
    exits = None if reads is None else traces.layers
    return traces.with_costs(
        cost.measure_layer_seconds(model.backbone, heads, sample, scores, score_stride, exits=exits)
    )


def _evaluate(calibration: Calibration) -> list[dict[str, Any]]:
    """Measure exit layers and losses in each condition, with confidence intervals."""
    from daisy.evaluation.comparison import evaluate_by_condition

    evaluations = evaluate_by_condition(calibration.policy.name, calibration.exit_layers, calibration.runs)
    return [_to_json(evaluation) for evaluation in evaluations]


def _to_json(evaluation: Evaluation) -> dict[str, Any]:
    row: dict[str, Any] = {
        "condition": evaluation.condition,
        "num_runs": evaluation.num_runs,
        "depth": evaluation.depth,
    }
    for name, estimate in (("exit_layer", evaluation.mean_exit_layer), *evaluation.losses.items()):
        row |= {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return row


def _write(
    out: Path,
    calibration: Calibration,
    target: dict[str, Any],
    attained: list[dict[str, Any]],
    checkpoint: str,
    model: Model,
    speech: Speech,
    reads: HeadsKind | None,
    score_stride: int,
) -> None:
    """Write the policy file."""
    from daisy import checkpoints
    from daisy.policies import write_policy

    certified = {"certified": calibration.certified} if calibration.certified else {}
    write_policy(
        out,
        calibration.policy,
        checkpoint=Path(checkpoint).stem,
        digest=checkpoints.digest(checkpoint),
        target=target,
        attained={"conditions": attained, **certified},
        data={
            "num_recordings": len(speech.names),
            "num_speakers": len(set(speech.groups)),
            "digest": speech.digest(),
        },
        score_stride=score_stride,
        heads=reads or "units",
        exits=model.ctc.config.layers if reads == "units" and model.ctc is not None else None,
    )


def _describe_intervals(num_groups: int, *, has_speakers: bool) -> str:
    """Describe what the intervals are based on; with a single speaker or recording there are none."""
    name = "speaker" if has_speakers else "recording"
    if num_groups == 1:
        return f"all of one {name}, so that there are no intervals, and others may differ:"
    return f"95 % intervals, from resampling {name}s{'' if has_speakers else ' (no --speakers were given)'}:"


def _say_attained(attained: list[dict[str, Any]], certified: dict[str, Any], unit: str, loss: str, about: str) -> None:
    """Print what was attained, with intervals; ``certified`` is empty if no risk was requested."""
    say(about)
    for line in attained:
        text = f"mean exit layer {_format_interval(line, 'exit_layer', 2)}, {line['depth']:.1%} of the {unit}"
        if not certified and loss in line:
            text += f", {loss} {_format_interval(line, loss, 3)}"
        say(f"{line['condition']:>20}: {text}")
    for line in certified.get("by_condition", ()):
        say(f"{line['condition']:>20}: risk {_format_interval(line, 'risk', 3)}")
    for line in certified.get("by_exit_layer", ()):
        where = f"exit layer {line['exit_layer']}"
        say(f"{where:>20}: risk {line['risk']:.3f} of {line['num_runs']} recordings")


def _format_interval(line: dict[str, Any], key: str, digits: int) -> str:
    """Format a mean, with its interval if it has one."""
    if line[f"{key}_low"] == line[f"{key}_high"]:
        return f"{line[key]:.{digits}f}"
    return f"{line[key]:.{digits}f} ({line[f'{key}_low']:.{digits}f} to {line[f'{key}_high']:.{digits}f})"


def _warn_of_few_speakers(policy: str, speech: Speech) -> None:
    """Print a note if a policy that predicts was learnt from few speakers."""
    from daisy.calibration.families import LOOK_AHEAD

    num_speakers = len(set(speech.groups))
    if policy in LOOK_AHEAD and num_speakers < FEW_SPEAKERS:
        warn(f"note: {policy} was learnt from {num_speakers} speakers: on others its depth may be far from this")
