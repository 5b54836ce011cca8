"""Options that commands share, and what their texts mean."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daisy.errors import UsageError

if TYPE_CHECKING:
    from daisy.audio import Channel

Checkpoint = Annotated[str, typer.Option("--checkpoint", "-c", help="A daisy checkpoint, or a bundled model's name.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")]
ChannelText = Annotated[
    str,
    typer.Option("--channel", help="Of stereo: mean of the channels, one of them (0, 1, ...), or all, each by itself."),
]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1 and so on.")]
Noise = Annotated[
    list[str] | None, typer.Option(help="white, pink, babble, or a folder of recorded noise; may be repeated.")
]
Speakers = Annotated[
    Path | None, typer.Option(help="CSV file of path and speaker; without it each file is a speaker of its own.")
]
Root = Annotated[Path, typer.Option(help="Folder that the paths in --speakers are relative to.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at the first recording that cannot be read; else it is left out.")
]
Policies = Annotated[
    str, typer.Option(help="Policies to compare, such as entropy,forecast,fixed; else all that the scores allow.")
]
Depth = Annotated[float, typer.Option(help="Mean executed share of the layers that the table by condition is for.")]
Depths = Annotated[str, typer.Option(help="Mean executed shares to compare policies at; 0.3,0.4 to 0.9 if not given.")]
Report = Annotated[Path | None, typer.Option(help="Write one self-contained HTML page here.")]

DEFAULT_CHECKPOINT = "daisy-mini"
DEFAULT_POLICY = "forecast"
"""That of `daisy.policies`, which is not imported here: help needs no torch."""
SNRS_DB: tuple[float | None, ...] = (None, 20.0, 10.0, 5.0, 0.0, -5.0)
"""Signal-to-noise ratios of a noise curve; None: clean."""


def check_device(name: str) -> str:
    """Check that a device is there and works.

    Returns:
        Its name.

    Raises:
        UsageError: saying why it does not.
    """
    from daisy.runtime.dtypes import check_device as check

    try:
        return str(check(name))
    except UsageError as error:
        raise UsageError(f"--{error}") from None


def parse_channel(text: str) -> Channel:
    """Turn "mean", "all" or a channel's number into what `daisy.audio.take_channels` takes.

    Raises:
        UsageError: on anything else.
    """
    if text == "mean":
        return "mean"
    if text == "all":
        return "all"
    if text.isascii() and text.isdecimal():
        return int(text)
    raise UsageError(f"--channel takes mean, all, or the number of a channel, 0 for the first, found {text!r}")


def parse_pairs(texts: Iterable[str]) -> dict[str, str]:
    """Turn ``KEY=VALUE`` texts into a dictionary.

    Raises:
        UsageError: on a text without "=".
    """
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--set takes KEY=VALUE, found {text!r}")
        pairs[key.strip()] = value.strip()
    return pairs


def parse_settings(texts: Iterable[str]) -> dict[str, float | int]:
    """Turn ``KEY=NUMBER`` texts into a dictionary; whole numbers stay whole.

    Raises:
        UsageError: on a value that is no number.
    """
    settings: dict[str, float | int] = {}
    for key, value in parse_pairs(texts).items():
        try:
            settings[key] = int(value) if value.lstrip("+-").isdigit() else float(value)
        except ValueError:
            raise UsageError(f"--set {key} takes a number, found {value!r}") from None
    return settings


def parse_snrs(text: str) -> list[float | None]:
    """Turn signal-to-noise ratios, "clean,20,0", into [None, 20.0, 0.0].

    Raises:
        UsageError: on what is neither clean nor a number.
    """
    ratios: list[float | None] = []
    for name in parse_names(text):
        try:
            ratios.append(None if name == "clean" else float(name))
        except ValueError:
            raise UsageError(f"--snr takes clean and numbers in dB, found {name!r}") from None
    return ratios


def parse_numbers(text: str, option: str) -> list[float]:
    """Turn an option's list of numbers, "0.3,0.6", into floats.

    Raises:
        UsageError: on what is no number.
    """
    try:
        return [float(name) for name in parse_names(text)]
    except ValueError:
        raise UsageError(f"{option} takes numbers with commas between them, found {text!r}") from None


def parse_names(text: str) -> list[str]:
    """Split a list, "entropy, fixed", at its commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
