"""daisy calibrate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from daisy.cli.console import (
    DEFAULT_CHECKPOINT,
    DEFAULT_POLICY,
    Checkpoint,
    Device,
    checked_device,
    errors,
    list_failures,
    output,
    progress_bar,
    snrs,
)
from daisy.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from daisy.calibration.trace_conditions import Speech
    from daisy.calibration.traces import Traces
    from daisy.checkpoints.format import Model
    from daisy.evaluation.comparison import Evaluation

TIMED = 20
FEW_SPEAKERS = 10
NEED_FULL_MODEL = ("forecast", "agreement")
ON_SCORES = ("entropy", "regressed", "confidence", "margin", "patience", "plateau", "regressed_plateau")
CALIBRATED = (*NEED_FULL_MODEL, *ON_SCORES, "fixed")


def command(
    inputs: Annotated[list[str], typer.Argument(help="Unlabelled speech: files, folders, globs, manifests (.tsv).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The policy file to write (.json).")],
    checkpoint: Checkpoint = DEFAULT_CHECKPOINT,
    policy: Annotated[str, typer.Option("--policy", "-p", help="Which rule to set.")] = DEFAULT_POLICY,
    depth: Annotated[float | None, typer.Option(help="Mean executed share to come to.")] = None,
    time: Annotated[bool, typer.Option("--time", help="Count --depth in measured time, not in layers.")] = False,
    risk: Annotated[float | None, typer.Option(help="Risk that the cheapest certified setting stays below.")] = None,
    delta: Annotated[float, typer.Option(help="How probable it may be that the risk is missed.")] = 0.1,
    method: Annotated[
        Literal["betting", "hoeffding-bentkus", "conformal"], typer.Option(help="conformal has no delta.")
    ] = "betting",
    of: Annotated[
        Literal["disagreement", "kl_nats"],
        typer.Option(help="The risk: frames whose unit is not the full model's, or divergence from its distribution."),
    ] = "disagreement",
    ceiling: Annotated[float, typer.Option(help="Nats that a divergence is clipped to; risks are shares of it.")] = 4.0,
    snr: Annotated[str, typer.Option(help="Conditions: clean,20,10,0. A risk holds in each.")] = "clean",
    noise: Annotated[
        list[str] | None, typer.Option(help="white, pink, babble, or a folder of recorded noise; may be repeated.")
    ] = None,
    speakers: Annotated[Path | None, typer.Option(help="CSV of path and speaker; else each file is its own.")] = None,
    root: Annotated[Path, typer.Option(help="Folder that the paths in --speakers are relative to.")] = Path("."),
    score_stride: Annotated[int, typer.Option(min=1, help="Heads look at every n-th frame.")] = 1,
    seed: Annotated[int, typer.Option(help="Of noise excerpts and of the halves for a guarantee.")] = 0,
    device: Device = "cpu",
) -> None:
    """Set a policy on unlabelled audio: for a mean depth, or for a risk with a statistical guarantee."""
    from daisy import _files, audio, checkpoints
    from daisy.audio import conditions
    from daisy.calibration import guarantee, trace_conditions
    from daisy.calibration.depth import LOOK_AHEAD, calibrate_depth, check_depth
    from daisy.evaluation import comparison
    from daisy.policies import write_policy

    if (depth is None) == (risk is None):
        raise UsageError("give either --depth or --risk")
    if time and depth is None:
        raise UsageError("--time goes with --depth")
    if policy not in CALIBRATED:
        raise UsageError(unknown_name("policy to calibrate", policy, CALIBRATED))
    model = checkpoints.load(checkpoint, device=checked_device(device))
    if model.final_head is None and (risk is not None or policy in NEED_FULL_MODEL):
        raise UsageError(
            f"{checkpoint} lacks HuBERT's own prediction head, which {'a risk' if risk else policy} is measured against"
        )
    rate = model.backbone.config.sample_rate
    kinds, recorded = trace_conditions.read_noises(noise or (), rate)
    heard = conditions.make_conditions(kinds, snrs(snr))
    speech = trace_conditions.read_speech(audio.find(inputs), speakers, root, rate)
    limit = ceiling if of == "kl_nats" else 1.0
    if depth is not None:
        check_depth(depth)
    elif risk is not None:
        guarantee.check_guarantee(risk, delta, method, of, limit, len(set(speech.groups)))
    _files.check_writable(out)
    with progress_bar() as bar:
        task = bar.add_task("full runs", total=len(speech.waveforms) * len({conditions.CLEAN, *heard}))
        advance = lambda count: bar.advance(task, count)  # noqa: E731
        table = trace_conditions.run_conditions(
            model, speech, heard, recorded, score_stride=score_stride, seed=seed, progress=advance
        )
    target: dict[str, object] = {"conditions": [condition.name for condition in heard], "seed": seed}
    if depth is not None:
        table = _timed(model, speech, policy, table, score_stride) if time else table
        chosen, exits = calibrate_depth(policy, table, depth)
        runs = table
        target |= {"depth": depth, "of": "time" if time else "layers"}
    else:
        assert risk is not None
        chosen, exits, runs = guarantee.calibrate_risk(
            policy, table, risk, delta, method=method, loss=of, ceiling=limit, seed=seed
        )
        target |= {"risk": risk, "method": method, "risk_of": of, "ceiling": limit}
        target |= {} if method == "conformal" else {"delta": delta}
        if chosen.name == "never":
            output.print(
                f"no setting of {policy} is certified at a risk of {risk:g}: the file says never. "
                f"{len(set(runs.groups))} speakers certify; more of them, or a larger --risk or --delta, would help",
                soft_wrap=True,
            )
    attained = [_attained(verdict) for verdict in comparison.evaluate_by_condition(chosen.name, exits, runs)]
    certified = guarantee.measure_attained(runs, exits, of, limit) if risk is not None else {}
    write_policy(
        out,
        chosen,
        checkpoint=Path(checkpoint).stem,
        digest=checkpoints.digest(checkpoint),
        target=target,
        attained={"conditions": attained} | ({"certified": certified} if certified else {}),
        data={
            "num_recordings": len(speech.names),
            "num_speakers": len(set(speech.groups)),
            "digest": speech.digest(),
        },
        score_stride=score_stride,
    )
    _print(attained, certified, str(target.get("of", "layers")), of)
    known = len(set(speech.groups))
    if policy in LOOK_AHEAD and known < FEW_SPEAKERS:
        note = f"note: {policy} was learnt from {known} speakers: on others its depth may be far from this"
        errors.print(note, soft_wrap=True)
    output.print(f"{out}: policy {chosen.name} for {Path(checkpoint).stem}", soft_wrap=True)
    list_failures(speech.failed, len(speech.failed) + len(speech.names))


def _timed(model: Model, speech: Speech, policy: str, table: Traces, score_stride: int) -> Traces:
    """Traces whose costs are this machine's seconds."""
    from daisy.calibration import cost
    from daisy.calibration.depth import fit_family

    sample = speech.waveforms[:: -(-len(speech.waveforms) // TIMED)]
    reads = fit_family(policy, table).at(0.5).reads
    return table.with_costs(cost.measure_layer_seconds(model.backbone, model.heads, sample, reads, score_stride))


def _print(attained: list[dict], certified: dict, unit: str, of: str) -> None:
    """What was attained, with intervals; ``certified`` is empty where no risk was asked for."""
    output.print("95 % intervals, from resampling speakers:")
    for line in attained:
        shown = f"mean exit layer {_interval(line, 'exit_layer', 2)}, {line['depth']:.1%} of the {unit}"
        if not certified and of in line:
            shown += f", {of} {_interval(line, of, 3)}"
        output.print(f"{line['condition']:>20}: {shown}", soft_wrap=True)
    for line in certified.get("by_condition", ()):
        output.print(f"{line['condition']:>20}: risk {_interval(line, 'risk', 3)}", soft_wrap=True)
    for line in certified.get("by_exit_layer", ()):
        where = f"exit layer {line['exit_layer']}"
        output.print(f"{where:>20}: risk {line['risk']:.3f} of {line['num_runs']} recordings", soft_wrap=True)


def _interval(line: dict, key: str, digits: int) -> str:
    return f"{line[key]:.{digits}f} ({line[f'{key}_low']:.{digits}f} to {line[f'{key}_high']:.{digits}f})"


def _attained(verdict: Evaluation) -> dict:
    row = {"condition": verdict.condition, "num_runs": verdict.num_runs, "depth": verdict.depth}
    for name, estimate in (("exit_layer", verdict.mean_exit_layer), *verdict.losses.items()):
        row |= {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return row
