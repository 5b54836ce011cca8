"""Options that commands share, and their parsing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from daisy.cli.console import say, warn
from daisy.errors import UsageError

if TYPE_CHECKING:
    from daisy.audio import Channel, Recording
    from daisy.encoder import EarlyExitEncoder
    from daisy.extraction import Shard
    from daisy.policies import Deadline

Inputs = Annotated[
    list[str],
    typer.Argument(help="Files, folders, globs, or manifests of fairseq (.tsv) or lhotse (.jsonl, .jsonl.gz)."),
]
Checkpoint = Annotated[str, typer.Option("--checkpoint", "-c", help="A daisy checkpoint, or a bundled model's name.")]
DeadlineMs = Annotated[
    float | None, typer.Option(help="Maximum milliseconds for a recording, by times measured at the start.")
]
DeadlineMacs = Annotated[float | None, typer.Option(help="Maximum multiply-accumulates for a recording.")]
PolicySettings = Annotated[list[str] | None, typer.Option(help="A setting of the policy, such as threshold=1.2.")]
BatchSec = Annotated[float, typer.Option(help="Seconds of audio in a batch.")]
ContextSec = Annotated[
    float | None, typer.Option(help="Seconds at a window's ends that are computed and dropped; default: 2.")
]
ComputeDtype = Annotated[
    Literal["float32", "bfloat16", "int8"], typer.Option(help="Precision of the computation; int8 on CPUs only.")
]
ShardText = Annotated[
    str,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Process share I, from 0, of N; all may run at once into one folder, as in a job array.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start over in a folder that holds a run.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")]
ChannelText = Annotated[
    str,
    typer.Option("--channel", help="For stereo: mean of the channels, one of them (0, 1, ...), or all, one by one."),
]
Device = Annotated[str, typer.Option(help="Device to compute on: cpu, cuda, cuda:1 and so on.")]
Noise = Annotated[
    list[str] | None,
    typer.Option(help="white, pink, babble, or a folder or manifest of recorded noise; may be repeated."),
]
Speakers = Annotated[
    Path | None, typer.Option(help="CSV file of path and speaker; by default each file counts as a speaker of its own.")
]
Root = Annotated[Path, typer.Option(help="Folder to which paths in a CSV file of speakers or texts are relative.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at the first recording that cannot be read; otherwise it is left out.")
]
Policies = Annotated[
    str, typer.Option(help="Policies to compare, such as entropy,forecast,fixed; default: all that the scores allow.")
]
Depth = Annotated[float, typer.Option(help="Mean executed share of the layers for the table by condition.")]
Depths = Annotated[str, typer.Option(help="Mean executed shares to compare policies at; default: 0.3,0.4 to 0.9.")]
Report = Annotated[Path | None, typer.Option(help="Write one self-contained HTML page here.")]

DEFAULT_CHECKPOINT = "daisy-mini"
DEFAULT_POLICY = "forecast"
"""The default of `daisy.policies`, which is not imported here because help needs no torch."""
SNRS_DB: tuple[float | None, ...] = (None, 20.0, 10.0, 5.0, 0.0, -5.0)
"""Signal-to-noise ratios of a noise curve; None: clean."""


def check_device(name: str) -> str:
    """Check that a device exists and works.

    Returns:
        The device's name.

    Raises:
        UsageError: if it does not, with the reason.
    """
    from daisy.runtime.dtypes import check_device as check

    try:
        return str(check(name))
    except UsageError as error:
        raise UsageError(f"--{error}") from None


def parse_channel(text: str) -> Channel:
    """Convert "mean", "all" or a channel's number for `daisy.audio.take_channels`.

    Raises:
        UsageError: if the text is anything else.
    """
    if text == "mean":
        return "mean"
    if text == "all":
        return "all"
    if text.isascii() and text.isdecimal():
        return int(text)
    raise UsageError(f"--channel takes mean, all, or the number of a channel, 0 for the first, found {text!r}")


def parse_shard(text: str) -> Shard:
    """Parse a share, "I/N"; return the whole if the text is empty.

    Raises:
        UsageError: if the text is anything else.
    """
    from daisy.extraction import Shard

    index, slash, count = text.partition("/")
    if text and not (slash and index.strip().isdecimal() and count.strip().isdecimal()):
        raise UsageError(f"--shard takes I/N, such as 0/4 to 3/4, found {text!r}")
    return Shard(int(index), int(count)) if text else Shard(0, 1)


def say_share(share: Shard, num_done: int, recordings: Sequence[Recording], heard: Channel) -> None:
    """Print the size of a share relative to the whole.

    Args:
        share: the share.
        num_done: number of its recordings, whether they could be read or not.
        recordings: files of all shares.
        heard: channel used of multichannel files.
    """
    num_taken = sum(share.takes(recording) for recording in recordings)
    of = f" of {num_taken} of {len(recordings)} files" if heard == "all" else f" of {len(recordings)} recordings"
    say(f"{share}: {num_done}{' recordings' if heard == 'all' else ''}{of}")


def check_deadlines(milliseconds: float | None, macs: float | None) -> None:
    """Reject two budgets at once.

    Raises:
        UsageError: if both are given.
    """
    if milliseconds is not None and macs is not None:
        raise UsageError("--deadline-ms and --deadline-macs exclude each other")


def note_lost_guarantee(
    policy: str,
    *,
    milliseconds: float | None = None,
    macs: float | None = None,
    window_sec: float | None = None,
    precision: str = "float32",
    fewer_exits: bool = False,
    search: str = "",
) -> None:
    """Print a note that a policy file's guarantee does not hold if options change what its policy sees or does.

    Args:
        policy: name or file of the policy.
        milliseconds: time budget, or None.
        macs: budget of multiply-accumulates, or None.
        window_sec: seconds of windows; 0 or None: no windows.
        precision: precision of the computation.
        fewer_exits: whether heads on units decide where exits that write text are, rather than at all layers.
        search: option that replaces greedy decoding; empty: greedy decoding.
    """
    from daisy.policies.file import is_certified

    given = {
        "--deadline-ms": milliseconds is not None,
        "--deadline-macs": macs is not None,
        f"--window {window_sec or 0:g}": bool(window_sec),
        f"--precision {precision}": precision != "float32",
        "exits at fewer layers": fewer_exits and is_certified(policy, at_all_exits=True),
        search: bool(search) and is_certified(policy, of_texts=True),
    }
    changed = " and ".join(option for option, is_given in given.items() if is_given)
    if changed and policy and is_certified(policy):
        warn(f"note: the guarantee of {policy} is of whole recordings in float32: with {changed} it does not hold")


def limit_cost(
    encoder: EarlyExitEncoder,
    *,
    milliseconds: float | None,
    macs: float | None,
    begun_in: Path | None,
    threads: int | None = None,
) -> None:
    """Add a recording's budget to an encoder's policy, if one is given.

    Args:
        encoder: encoder whose policy may exit earlier.
        milliseconds: time budget, measured now or when the run in ``begun_in`` began; None: no such budget.
        macs: budget of multiply-accumulates; None: no such budget.
        begun_in: folder whose run is resumed if it has the same budget; None: no folder.
        threads: threads on which recordings will run; None: as many as this process has.
    """
    budget = milliseconds if milliseconds is not None else macs
    if budget is None:
        return
    import torch

    from daisy.calibration import cost

    parts = encoder.backbone, encoder.heads, budget, encoder.policy, encoder.score_stride
    counted = cost.make_macs_deadline(*parts, encoder.exits)
    if milliseconds is None:
        encoder.policy = counted
        return
    begun = None if begun_in is None else _find_deadline(begun_in, counted)
    ours = torch.get_num_threads()
    torch.set_num_threads(threads or ours)
    try:
        encoder.policy = begun or cost.make_measured_deadline(*parts, dtype=encoder.dtype, exits=encoder.exits)
    finally:
        torch.set_num_threads(ours)


def _find_deadline(out: Path, counted: Deadline) -> Deadline | None:
    """Return the measured budget of a folder's run if only its costs differ from ``counted``; otherwise None.

    Times measured again would differ, and the run could not be resumed.
    """
    from daisy.extraction.run_journals import read_policies
    from daisy.policies import Deadline, from_config

    for config in read_policies(out):
        begun = from_config(config) if config.get("name") == counted.name else None
        if not isinstance(begun, Deadline) or begun.layer_cost == counted.layer_cost:
            continue  # another policy, or a budget of operations
        if begun == dataclasses.replace(counted, front_cost=begun.front_cost, layer_cost=begun.layer_cost):
            return begun
    return None


def parse_pairs(texts: Iterable[str]) -> dict[str, str]:
    """Parse ``KEY=VALUE`` texts into a dictionary.

    Raises:
        UsageError: if a text has no "=".
    """
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--set takes KEY=VALUE, found {text!r}")
        pairs[key.strip()] = value.strip()
    return pairs


NO_SETTINGS = ("name", "policy", "model", "heads", "exits", "scores", "dtype", "decode")
"""Further arguments of the library's functions that take settings by name."""


def parse_settings(texts: Iterable[str]) -> dict[str, float | int]:
    """Parse ``KEY=NUMBER`` texts into a dictionary; whole numbers stay whole.

    Raises:
        UsageError: if a value is not a number, or a key is not a setting.
    """
    settings: dict[str, float | int] = {}
    for key, value in parse_pairs(texts).items():
        if key in NO_SETTINGS:
            raise UsageError(f"--set {key}: no policy has such a setting")
        try:
            settings[key] = int(value) if value.lstrip("+-").isdigit() else float(value)
        except ValueError:
            raise UsageError(f"--set {key} takes a number, found {value!r}") from None
    return settings


def parse_snrs(text: str) -> list[float | None]:
    """Parse signal-to-noise ratios, "clean,20,0", into [None, 20.0, 0.0].

    Raises:
        UsageError: if one is neither clean nor a number.
    """
    ratios: list[float | None] = []
    for name in parse_names(text):
        try:
            ratios.append(None if name == "clean" else float(name))
        except ValueError:
            raise UsageError(f"--snr takes clean and numbers in dB, found {name!r}") from None
    return ratios


def parse_numbers(text: str, option: str) -> list[float]:
    """Parse an option's list of numbers, "0.3,0.6".

    Raises:
        UsageError: if one is not a number.
    """
    try:
        return [float(name) for name in parse_names(text)]
    except ValueError:
        raise UsageError(f"{option} takes numbers with commas between them, found {text!r}") from None


def parse_names(text: str) -> list[str]:
    """Split a list, "entropy, fixed", at its commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
