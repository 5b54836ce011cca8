"""daisy info."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daisy.cli.console import say_table
from daisy.cli.options import DEFAULT_CHECKPOINT

if TYPE_CHECKING:
    from daisy.checkpoints import Model
    from daisy.models import ConformerConfig, WhisperConfig

Rows = list[tuple[str, str]]
REPORTED = ("torch", "torchaudio", "numpy", "fairseq", "fairseq-fixed", "s3prl", "transformers", "ray")
"""Packages whose versions are shown if they are installed."""


def command(
    checkpoint: Annotated[
        str, typer.Argument(help="A daisy checkpoint, or a bundled model's name.")
    ] = DEFAULT_CHECKPOINT,
) -> None:
    """Describe a checkpoint: shape, size, heads, policies, origin."""
    from rich.table import Table

    from daisy import checkpoints

    path = checkpoints.find(checkpoint)
    model = checkpoints.load(path)
    rows = [
        *_describe_file(path),
        *_describe_backbone(model),
        *_describe_heads(model),
        *_describe_costs(model),
        *_describe_policies(model),
        *((key, str(value)) for key, value in model.provenance.items()),
        ("versions", _list_versions()),
    ]
    table = Table(show_header=False, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    say_table(table)


def _list_versions() -> str:
    """Return the versions of software and system that a bug report needs."""
    import platform
    from importlib import metadata

    from daisy.version import __version__

    versions = [f"daisy {__version__}", f"Python {platform.python_version()}"]
    for package in REPORTED:
        with suppress(metadata.PackageNotFoundError):
            versions.append(f"{package} {metadata.version(package)}")
    return f"{', '.join(versions)}; {platform.system()} {platform.machine()}"


def _describe_file(path: Path) -> Rows:
    from daisy import checkpoints

    return [("file", f"{path} ({path.stat().st_size / 1e6:.1f} MB)"), ("sha256", checkpoints.digest(path))]


def _describe_conformer(config: ConformerConfig) -> Rows:
    layers = f"{config.num_layers} of width {config.width}, {config.num_heads} heads, feed-forward {config.ffn_width}"
    kind = f"Conformer, kernel {config.kernel}, blocks of {config.block_layers} layers"
    if config.split_blocks:
        kind += f", a half-rate layer beside block {' and '.join(map(str, config.split_blocks))}"
    if not config.mask_padding:
        kind += ", padding not masked: utterances run one by one"
    mel = f"{'log-' if config.log else ''}mel of {config.num_mels} bands{', normalised' if config.normalize else ''}"
    frames = f"a frame of {config.frame_span} samples every {config.frame_hop}"
    return [("layers", layers), ("kind", kind), ("input", f"{config.sample_rate} Hz, {mel}; {frames}")]


def _describe_whisper(config: WhisperConfig) -> Rows:
    layers = f"{config.num_layers} of width {config.width}, {config.num_heads} heads, feed-forward {config.ffn_width}"
    seconds = config.max_samples / config.sample_rate
    kind = f"Whisper's encoder, which hears {seconds:g} s at once, with silence where a recording is shorter"
    spectra = f"log-mel of {config.num_mels} bands; a frame every {config.frame_hop} samples"
    return [("layers", layers), ("kind", kind), ("input", f"{config.sample_rate} Hz, {spectra}")]


def _describe_backbone(model: Model) -> Rows:
    from daisy.models import BackboneConfig, ConformerConfig, WhisperConfig

    config = model.backbone.config
    if isinstance(config, ConformerConfig):
        return _describe_conformer(config)
    if isinstance(config, WhisperConfig):
        return _describe_whisper(config)
    layers = f"{config.num_layers} of width {config.width}, {config.num_heads} heads, feed-forward {config.ffn_width}"
    norms = f"{'pre' if config.pre_norm else 'post'}-norm layers, {config.conv_norm} norm in the convolutions"
    if config.pos_stack is not None:
        norms += f", {config.pos_stack} positional convolutions with norms"
    if config.pos_batch_norm:
        norms += ", batch norm before the positions"
    if not config.projection_norm:
        norms += ", none before the projection"
    if config.layer_norm_eps != BackboneConfig.layer_norm_eps:
        norms += f", epsilon {config.layer_norm_eps:g}"
    if config.relative_buckets is not None:
        layers += f", gated relative positions up to {config.relative_max_distance} frames"
    normalised = f", normalised (epsilon {config.normalize_eps:g})" if config.normalize else ""
    frames = f"a frame of {config.frame_span} samples every {config.frame_hop}"
    return [("layers", layers), ("norms", norms), ("input", f"{config.sample_rate} Hz{normalised}; {frames}")]


def _describe_heads(model: Model) -> Rows:
    from daisy.checkpoints.model import describe_exits

    rows = []
    for name, part in model.parts().items():
        rows.append((f"{name} parameters", f"{sum(p.numel() for p in part.parameters()):,}"))
    if model.ctc is not None and model.tokens is not None:
        tokens = model.tokens
        kind = "SentencePiece" if tokens.are_pieces else "phones" if tokens.are_phones else "characters"
        rows += [("CTC exits", describe_exits(model.ctc.config)), ("tokens", f"{len(tokens)}, {kind}")]
    if model.decoders is not None:
        rows.append(("attention decoders", f"one at each CTC exit, depth {model.decoders.config.num_blocks}"))
    if model.heads is None:
        none = "none" if model.ctc is not None else "none: policies fixed, never, random and deadline only"
        return [*rows, ("exit heads", none)]
    heads = model.heads.config
    kinds = "unit classifiers and loss regressors" if heads.regressors else "unit classifiers"
    return [*rows, ("exit heads", f"{kinds} for {heads.num_units} units, reading the {heads.reads.replace('_', '-')}")]


def _describe_costs(model: Model) -> Rows:
    from daisy.calibration import cost

    config = model.backbone.config
    num_frames = 10 * config.sample_rate / config.frame_hop

    def count_macs(coefficients: tuple[float, ...]) -> float:
        return sum(factor * num_frames**power for power, factor in enumerate(coefficients))

    front_end = count_macs(cost.count_front_end_macs(config))
    heads = model.exit_heads()
    layer = count_macs(cost.count_layer_macs(config, heads.config if heads else None))
    of_10_sec = f"of 10 s: front end {front_end:.2e}, each layer with its head {layer:.2e}"
    return [("multiply-accumulates", of_10_sec)]


def _describe_policies(model: Model) -> Rows:
    return [
        (f"policy {name}", ", ".join(f"{key}={_shorten(value)}" for key, value in settings.items()))
        for name, settings in model.policies.items()
    ] + [
        (f"CTC policy {name}", ", ".join(f"{key}={_shorten(value)}" for key, value in settings.items()))
        for name, settings in model.ctc_policies.items()
    ]


def _shorten(value: object) -> str:
    """Return a setting in short form: for a list of numbers, its number of layers."""
    if not isinstance(value, list | tuple):
        return f"{value:g}" if isinstance(value, int | float) else str(value)
    if all(isinstance(item, str) for item in value):
        return "+".join(value)
    return f"({len(value)} layers)"
