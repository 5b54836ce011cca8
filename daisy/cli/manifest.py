"""daisy manifest."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daisy.cli.console import explain, say, warn, warn_of_rest
from daisy.errors import AudioError, UsageError

if TYPE_CHECKING:
    from daisy.audio import SetShare

FORMAT_VERSION = 1
"""Version of the notes beside weighted manifests."""


def command(
    inputs: Annotated[list[str], typer.Argument(help="Recordings: files, folders or globs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .tsv file to write.")],
    root: Annotated[Path, typer.Option(help="Folder that the paths in the manifest are relative to.")] = Path("."),
    sample_rate: Annotated[int, typer.Option(min=1, help="Sample rate of the model in Hz: task.sample_rate.")] = 16000,
    speakers: Annotated[
        Path | None, typer.Option(help="CSV file of path (below the root) and speaker, for --balance.")
    ] = None,
    balance: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="How much more often recordings of rare speakers are listed, 0 to 1."),
    ] = 0.0,
    weight: Annotated[
        list[str] | None,
        typer.Option(help="SET=NUMBER, may be repeated: list the recordings below this folder NUMBER times as often."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            help="Transcripts; they and their dictionary are written too. A CSV file of path (below the root) and "
            "text, a .trn, LibriSpeech's .trans.txt or a folder of these."
        ),
    ] = None,
    sentencepiece: Annotated[
        Path | None, typer.Option(help="With --text: a SentencePiece model whose pieces, not letters, are the tokens.")
    ] = None,
    labels: Annotated[
        str, typer.Option(help="With --text: ending of the transcripts, task.labels; default: ltr, or spm for pieces.")
    ] = "",
) -> None:
    """Write a fairseq manifest of recordings.

    Its lines are the root folder, then each recording's path and number of samples. Recordings that fairseq could not
    use, judged by their headers and names, are left out and listed; the exit status is then 1, or 2 if none is left.

    A weight that is not a whole number is kept on average: with 1.5 every second recording of the set is listed twice.
    With --weight or --balance a file NAME.weights.json beside the manifest says how long each set is heard.
    """
    from daisy import _files, audio

    if (speakers is not None) != (balance > 0):
        raise UsageError("--balance and --speakers go together")
    if text is None and (sentencepiece or labels):
        raise UsageError("--sentencepiece and --labels are of transcripts: give --text too")
    weights = _parse_weights(weight or [])
    _files.check_writable(out)
    folder = Path(os.path.abspath(root))
    first_line = audio.format_manifest_root(folder)
    lines: list[str] = []
    kept: list[audio.Recording] = []
    failed: list[AudioError] = []
    findings = audio.search(inputs)
    for recording in findings.recordings:
        try:
            lines.append(audio.format_manifest_line(recording, folder, sample_rate))
            kept.append(recording)
        except AudioError as error:
            failed.append(error)
    listing = Listing.of(lines)
    if speakers is not None:
        listing.balance_speakers(audio.read_speakers(speakers), balance)
    if lines:
        shares = listing.weigh(weights, sample_rate)
        repeated = listing.repeat(listing.lines)
        if text is not None:
            texts = audio.require_references(text, audio.read_references(text, kept, folder), listing.names)
            labels = labels or ("spm" if sentencepiece else "ltr")
            dictionary = audio.write_transcripts(out, listing.repeat(texts), labels, sentencepiece)
            say(f"{dictionary}: tokens of the transcripts beside {out.name}")
        _files.write(out, ("\n".join([first_line, *repeated]) + "\n").encode())
        say(f"{out}: {len(repeated)} recordings")
        if weights:
            say(f"each epoch hears {', '.join(share.describe() for share in shares)}")
        _note_weights(out, shares, {"balance": balance, "speakers": str(speakers) if speakers else None})
    else:
        warn(f"{out}: not written: no recording is left")
    warn_of_rest(findings)
    for reason in failed:
        warn(f"left out: {explain(reason)}")
    if failed:
        raise typer.Exit(1 if lines else 2)


def _parse_weights(texts: list[str]) -> dict[str, float]:
    """Parse the given SET=NUMBER texts."""
    from daisy import audio

    weights: dict[str, float] = {}
    for text in texts:
        folder, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            folder = ""
        if not folder:
            raise UsageError(f"--weight {text}: must be SET=NUMBER, such as keywords=2")
        if folder in weights:
            raise UsageError(f"--weight {text}: {folder} has a weight already")
        weights[folder] = value
    audio.check_weights(weights)
    return weights


@dataclass
class Listing:
    """Recordings of a manifest, and how often each is listed."""

    lines: list[str]
    names: list[str]
    num_samples: list[int]
    repeats: list[int]

    @classmethod
    def of(cls, lines: list[str]) -> Listing:
        """List each line once."""
        fields = [line.rsplit("\t", 1) for line in lines]
        names, counts = [str(Path(name)) for name, _ in fields], [int(count) for _, count in fields]
        return cls(lines=lines, names=names, num_samples=counts, repeats=[1] * len(lines))

    def balance_speakers(self, speakers: dict[str, str], power: float) -> None:
        """Repeat the lines of speakers with less audio than others; with power 1 all become equal."""
        from daisy import audio

        unknown = [name for name in self.names if name not in speakers]
        if unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise UsageError(f"no speaker is given for {unknown[0]}{more}")
        self.repeats = audio.count_repeats(self.num_samples, [speakers[name] for name in self.names], power)

    def weigh(self, weights: dict[str, float], sample_rate: int) -> list[SetShare]:
        """Repeat the lines of sets by their weights, and measure how long each set is then heard."""
        from daisy import audio

        sets = audio.find_sets(self.names, list(weights))
        self.repeats = audio.weigh_sets(self.repeats, sets, weights)
        return audio.measure_shares(self.num_samples, self.repeats, sets, weights, sample_rate)

    def repeat(self, values: list[str]) -> list[str]:
        """Repeat the value of each line as often as the line is listed."""
        return [value for value, times in zip(values, self.repeats, strict=True) for _ in range(times)]


def _note_weights(out: Path, shares: list[SetShare], settings: dict[str, float | str | None]) -> None:
    """Write a note on the weights beside a manifest; without weights, only replace an old note."""
    from daisy import _files

    path = out.with_suffix(".weights.json")
    if settings["balance"] or any(share.folder for share in shares) or path.is_file():
        notes = {"manifest": out.name, "digest": _files.digest(out), **settings}
        _files.write_json(path, {"format_version": FORMAT_VERSION, **notes, "sets": [s.to_dict() for s in shares]})
