"""daisy train-heads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from daisy.cli.console import name_same_command, say, warn
from daisy.cli.options import Device, Out, Overwrite, check_device
from daisy.cli.progress import track

if TYPE_CHECKING:
    from daisy.training import HeadTraining, TrainingReport


def command(
    manifest: Annotated[Path, typer.Argument(help="fairseq manifest of the recordings to learn from.")],
    checkpoint: Annotated[
        str,
        typer.Option(
            "--checkpoint", "-c", help="The network: a daisy checkpoint (see daisy convert), or a bundled model's name."
        ),
    ],
    out: Out,
    valid: Annotated[Path | None, typer.Option(help="Manifest of recordings to validate on.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Folder of SPLIT.km and dict.km.txt, as daisy labels writes; default: the model's own units."
        ),
    ] = None,
    label_rate: Annotated[float, typer.Option(help="Labels per second.")] = 50.0,
    noise: Annotated[
        Path | None, typer.Option(help="Manifest of noise to add to the heads' input, held in memory.")
    ] = None,
    noise_prob: Annotated[float, typer.Option(help="Share of utterances that get noise.")] = 0.5,
    noise_snr_db: Annotated[tuple[float, float], typer.Option(help="Lowest and highest signal-to-noise ratio, dB.")] = (
        -5.0,
        20.0,
    ),
    mask_prob: Annotated[float, typer.Option(help="Share of frames masked while the heads learn; 0: none.")] = 0.0,
    updates: Annotated[int, typer.Option(help="Number of updates.")] = 800,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 0.002,
    warmup: Annotated[
        int | None, typer.Option(help="Updates over which the learning rate rises; 40, or a tenth of fewer than 400.")
    ] = None,
    clip_norm: Annotated[float, typer.Option(help="Norm above which gradients are scaled down; 0: never.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="Samples in a batch of a process, with padding.")] = 1_024_000,
    max_sample_size: Annotated[int, typer.Option(help="Samples to which longer recordings are cut.")] = 250_000,
    regressors: Annotated[
        bool, typer.Option("--regressors/--no-regressors", help="Train loss regressors beside the unit classifiers.")
    ] = True,
    save_interval: Annotated[int, typer.Option(min=1, help="Updates between saves and validations.")] = 200,
    log_interval: Annotated[int, typer.Option(min=1, help="Updates between logged losses.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all draws.")] = 1,
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Type to multiply in; weights stay in float32.")
    ] = "float32",
    device: Device = "cpu",
    overwrite: Overwrite = False,
) -> None:
    """Train exit heads on a frozen network, without fairseq.

    The losses are those of the fairseq plugin. Writes model.safetensors, log.jsonl, TensorBoard's event files if
    tensorboardX is installed, and training.pt, from which a stopped run is resumed. On several GPUs of a machine:
    torchrun --nproc_per_node 4 -m daisy train-heads ... --device cuda
    """
    from daisy import checkpoints
    from daisy.training import HeadTraining, train_heads
    from daisy.training.trainer import join_processes

    settings = HeadTraining(
        max_update=updates,
        lr=lr,
        warmup_updates=min(HeadTraining.warmup_updates, updates // 10) if warmup is None else warmup,
        clip_norm=clip_norm,
        max_tokens=max_tokens,
        max_sample_size=max_sample_size,
        seed=seed,
        noise_prob=noise_prob,
        noise_snr_db=noise_snr_db,
        mask_prob=mask_prob,
        regressors=regressors,
        label_rate=label_rate,
    )
    try:
        with join_processes(device) as ours, track("training", updates) as advance:
            report = train_heads(
                manifest,
                checkpoints.load(checkpoint, device=check_device(ours)),
                out,
                settings,
                valid=valid,
                labels=labels,
                noise=noise,
                checkpoint=checkpoints.digest(checkpoint),
                save_interval=save_interval,
                log_interval=log_interval,
                bfloat16=precision == "bfloat16",
                overwrite=overwrite,
                progress=advance,
            )
    except KeyboardInterrupt:
        warn(f"stopped: {name_same_command(overwrite)} goes on from the last saved update")
        raise typer.Exit(130) from None
    _say_report(report, settings, out)


def _say_report(report: TrainingReport, settings: HeadTraining, out: Path) -> None:
    """Print the results of the run."""
    if report.num_resumed:
        say(f"{report.num_resumed} of {report.num_updates} updates were made before")
    if report.num_left_out:
        say(f"{report.num_left_out} recordings of fewer than {settings.min_sample_size} samples were left out")
    for kind, means in (("train", report.train), ("valid", report.valid)):
        layers = sorted(int(name.split("_")[1]) for name in means if name.startswith("nats_"))
        if layers:
            shown = [layers[0], layers[len(layers) // 2], layers[-1]]
            parts = [
                f"layer {layer}: {means[f'nats_{layer}']:.3f} nats, {means[f'accuracy_{layer}']:.1%} right"
                for layer in shown
            ]
            say(f"{kind}: loss {means['loss']:.4f}; " + "; ".join(parts))
    path = out / "model.safetensors"
    say(f"{path}: heads after {report.num_updates} updates; daisy calibrate makes a policy for them")
