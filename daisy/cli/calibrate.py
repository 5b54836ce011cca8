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
    list_failures,
    output,
    progress_bar,
    snrs,
)
from daisy.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from daisy.checkpoint import Model
    from daisy.comparison import Verdict
    from daisy.noise_curve import Speech
    from daisy.traces import Traces

TIMED = 20


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
    score_stride: Annotated[int, typer.Option(min=1, help="Heads look at every so-manieth frame.")] = 1,
    seed: Annotated[int, typer.Option(help="Of noise excerpts and of the halves for a guarantee.")] = 0,
    device: Device = "cpu",
) -> None:
    """Set a policy on unlabelled audio: for a mean depth, or for a risk with a statistical guarantee."""
    from daisy import audio, calibration, comparison, conditions, guarantee, noise_curve, policy_file
    from daisy import checkpoint as checkpoints

    if (depth is None) == (risk is None):
        raise UsageError("give either --depth or --risk")
    model = checkpoints.load(checkpoint, device=checked_device(device))
    rate = model.backbone.config.sample_rate
    kinds, recorded = noise_curve.read_noises(noise or (), rate)
    heard = conditions.grid(kinds, snrs(snr))
    if not heard:
        raise UsageError(f"--snr {snr} names noisy conditions, and there is no --noise")
    speech = noise_curve.read_speech(audio.find(inputs), speakers, root, rate)
    with progress_bar() as bar:
        task = bar.add_task("full runs", total=len(speech.waveforms) * len({conditions.CLEAN, *heard}))
        advance = lambda count: bar.advance(task, count)  # noqa: E731
        table = noise_curve.run(model, speech, heard, recorded, score_stride=score_stride, seed=seed, progress=advance)
    target: dict[str, object] = {"conditions": [condition.name for condition in heard], "seed": seed}
    if risk is None:
        table = _timed(model, speech, policy, table) if time else table
        chosen = calibration.for_depth(policy, table, depth or 0.0)
        exits, runs = chosen.exit_layers(table.scores), table
        target |= {"depth": depth, "of": "time" if time else "layers"}
    else:
        limit = ceiling if of == "kl_nats" else 1.0
        chosen, exits, runs = guarantee.for_risk(
            policy, table, risk, delta, method=method, loss=of, ceiling=limit, seed=seed
        )
        target |= {"risk": risk, "delta": delta, "method": method, "of": of, "ceiling": limit}
        if chosen.name == "never":
            output.print(f"no setting of {policy} is certified at a risk of {risk:g}: the file says never")
    attained = [_attained(verdict, of) for verdict in comparison.by_condition(chosen.name, exits, runs)]
    content: dict[str, object] = {"conditions": attained}
    if risk is not None:
        content["by_exit_layer"] = _by_exit_layer(guarantee.bounded(runs.losses[of], limit), exits)
    speakers_known = len(set(speech.groups))
    policy_file.write(
        out,
        chosen,
        checkpoint=Path(checkpoint).stem,
        digest=checkpoints.digest(checkpoint),
        target=target,
        attained=content,
        data={"num_recordings": len(speech.names), "num_speakers": speakers_known, "digest": speech.digest()},
        score_stride=score_stride,
    )
    for line in attained:
        layer, loss = (
            f"{line[key]:.{digits}f} ({line[f'{key}_low']:.{digits}f} to {line[f'{key}_high']:.{digits}f})"
            for key, digits in (("exit_layer", 2), (of, 3))
        )
        output.print(f"{line['condition']:>20}: mean exit layer {layer}, {of} {loss}", soft_wrap=True)
    output.print(f"{out}: policy {chosen.name} for {Path(checkpoint).stem}", soft_wrap=True)
    list_failures(speech.failed, len(speech.failed) + len(speech.names))


def _timed(model: Model, speech: Speech, policy: str, table: Traces) -> Traces:
    """Traces whose costs are this machine's seconds."""
    from daisy import calibration, cost

    assert model.heads is not None  # full runs were made with them
    sample = speech.waveforms[:: -(-len(speech.waveforms) // TIMED)]
    reads = calibration.family(policy, table).at(0.5).reads
    return table.with_costs(cost.seconds_by_layer(model.backbone, model.heads, sample, reads))


def _attained(verdict: Verdict, loss: str) -> dict:
    row = {"condition": verdict.condition, "num_runs": verdict.num_runs, "depth": verdict.depth}
    for name, estimate in (("exit_layer", verdict.mean_exit_layer), (loss, verdict.losses[loss])):
        row |= {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return row


def _by_exit_layer(losses: Tensor, exits: Tensor) -> list[dict]:
    """Risk of the utterances that leave at each layer."""
    values = losses.gather(1, exits[:, None] - 1)[:, 0]
    return [
        {"exit_layer": layer, "num_runs": int((exits == layer).sum()), "risk": float(values[exits == layer].mean())}
        for layer in sorted(set(exits.tolist()))
    ]
