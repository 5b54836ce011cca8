"""daisy info."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from daisy.cli.console import DEFAULT_CHECKPOINT, output


def command(
    checkpoint: Annotated[
        str, typer.Argument(help="A daisy checkpoint, or a bundled model's name.")
    ] = DEFAULT_CHECKPOINT,
) -> None:
    """Describe a checkpoint: shape, size, heads, default policies, where it comes from."""
    from daisy import checkpoints
    from daisy.calibration import cost

    path = checkpoints.find(checkpoint)
    model = checkpoints.load(path)
    config = model.backbone.config
    table = Table(show_header=False, box=None, pad_edge=False)
    rows: list[tuple[str, object]] = [
        ("file", f"{path} ({path.stat().st_size / 1e6:.1f} MB)"),
        ("sha256", checkpoints.digest(path)),
        (
            "layers",
            f"{config.num_layers} of width {config.width}, {config.num_heads} heads, feed-forward {config.ffn_width}",
        ),
        ("norms", f"{'pre' if config.pre_norm else 'post'}-norm layers, {config.conv_norm} norm in the convolutions"),
        (
            "input",
            f"{config.sample_rate} Hz{', normalised' if config.normalize else ''}; a frame of "
            f"{config.frame_span} samples every {config.frame_hop}",
        ),
    ]
    for name, part in model.parts().items():
        rows.append((f"{name} parameters", f"{sum(p.numel() for p in part.parameters()):,}"))
    if model.heads is not None:
        heads = model.heads.config
        kinds = "unit classifiers and loss regressors" if heads.regressors else "unit classifiers"
        rows.append(("exit heads", f"{kinds} for {heads.num_units} units, reading the {heads.reads.replace('_', '-')}"))
    else:
        rows.append(("exit heads", "none: policies fixed and never only"))
    ten_sec = 10 * config.sample_rate / config.frame_hop
    heads_config = model.heads.config if model.heads else None
    front, layer = (
        sum(c * ten_sec**power for power, c in enumerate(coefficients))
        for coefficients in (
            cost.front_end_macs(config),
            cost.layer_macs(config, heads_config),
        )
    )
    rows.append(("multiply-accumulates", f"of 10 s: front end {front:.2e}, each layer with its head {layer:.2e}"))
    rows += [
        (f"policy {name}", ", ".join(f"{k}={_short(v)}" for k, v in settings.items()))
        for name, settings in model.policies.items()
    ]
    rows += [(key, value) for key, value in model.provenance.items()]
    for key, value in rows:
        table.add_row(key, str(value))
    output.print(table, soft_wrap=True)


def _short(value: object) -> str:
    """A setting: a number, or how many there are."""
    if not isinstance(value, list | tuple):
        return f"{value:g}" if isinstance(value, int | float) else str(value)
    if all(isinstance(each, str) for each in value):
        return "+".join(value)
    return f"({len(value)} layers)"
