"""Recordings: find, read, check, resample; order and batch by length."""

from __future__ import annotations

import csv
import glob
import io
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import soundfile
import torch
import torchaudio
from torch import Tensor

from daisy.errors import AudioError, UsageError

SUFFIXES = {f".{name.lower()}" for name in soundfile.available_formats()} - {".raw"} | {".mp3", ".opus", ".oga", ".aif"}
"""File name endings that a folder is searched for; raw samples do not tell their rate."""


LARGEST_FILTER = 8_000_000
SHORTEST = 400
"""Samples of one frame at 16 kHz, of HuBERT as of MFCC."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A file to read, and the name by which its results are known."""

    path: Path
    """Absolute."""
    name: str
    """Path relative to the folder or manifest root that it was found under."""


def find(inputs: Sequence[str]) -> list[Recording]:
    """Recordings named by files, folders (searched through), globs, or fairseq manifests (``.tsv``).

    Files are not opened here: an unreadable one is refused when it is read.

    Raises:
        UsageError: where an input does not exist, or nothing at all was found.
    """
    found: dict[Path, Recording] = {}
    for text in inputs:
        if not text:
            raise UsageError("an empty name among the inputs")
        for recording in _expand(text):
            found.setdefault(recording.path, recording)
    if not found:
        raise UsageError(f"no recordings in {', '.join(inputs) or 'an empty list'}")
    return list(found.values())


def read_manifest(path: Path) -> list[Recording]:
    """A fairseq manifest: the root folder, then ``path<TAB>num_samples`` lines.

    Raises:
        UsageError: where it is not one.
    """
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; make a manifest of it: daisy manifest {path} --out NAME.tsv")
    if not path.is_file():
        raise UsageError(f"{path}: no such manifest (looked for from {Path.cwd()})")
    try:
        root, *lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"{path}: not a fairseq manifest ({error})") from None
    names = [line.split("\t")[0] for line in lines if line.strip()]
    return [Recording(path=_absolute(path.parent / root / name), name=name) for name in names]


def manifest_line(recording: Recording, root: Path, sample_rate: int = 16000) -> str:
    """A recording's line in a fairseq manifest: its path below ``root``, and its length by its header.

    Raises:
        UsageError: where it is not below the root.
        AudioError: where its header is not readable, or says that it is too short or of another rate.
    """
    if not recording.path.is_relative_to(root):
        raise UsageError(f"{recording.path}: is not below the root {root}; give --root")
    info = _info(recording.path)
    if info.samplerate != sample_rate:
        raise AudioError(
            f"{recording.path}: {info.samplerate} Hz, and fairseq takes {sample_rate} Hz only: resample it"
        )
    if info.frames < SHORTEST:
        raise AudioError(f"{recording.path}: too short: {info.frames} samples, one frame needs {SHORTEST}")
    return f"{recording.path.relative_to(root)}\t{info.frames}"


def repeats(num_samples: Sequence[int], speakers: Sequence[str], power: float) -> list[int]:
    """How often to list each recording, so that nobody's voice outweighs the others'.

    Speakers are drawn in proportion to (their samples) ** (1 - power): 0 lists everything once, 1 hears all speakers
    equally long. The speaker with the most samples is listed once.

    Args:
        num_samples: of each recording.
        speakers: of each recording.
        power: 0 to 1.
    """
    totals: dict[str, int] = {}
    for count, speaker in zip(num_samples, speakers, strict=True):
        totals[speaker] = totals.get(speaker, 0) + count
    most = max(totals.values(), default=1)
    return [round((most / totals[speaker]) ** power) for speaker in speakers]


def read_speakers(path: Path) -> dict[str, str]:
    """A CSV file with the columns ``path`` (as in the manifest) and ``speaker``.

    Raises:
        UsageError: where it is not one.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            return {row["path"]: row["speaker"] or "" for row in csv.DictReader(stream)}
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, KeyError, csv.Error):
        raise UsageError(f"{path}: not a CSV file with the columns path and speaker") from None


def speakers_of(recordings: Sequence[Recording], table: Path | None, root: Path) -> list[str]:
    """The speaker of each recording, from a CSV file of `read_speakers`; each its own where there is none.

    Raises:
        UsageError: where the file is none, or lacks a recording.
    """
    if table is None:
        return [str(recording.path) for recording in recordings]
    known = {_absolute(root / path): speaker for path, speaker in read_speakers(table).items() if path}
    unknown = [recording.path for recording in recordings if not known.get(_absolute(recording.path))]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UsageError(f"{table}: names no speaker of {unknown[0]}{more}; its paths are taken below {root} (--root)")
    return [known[_absolute(recording.path)] for recording in recordings]


def read(path: Path, sample_rate: int = 16000) -> Tensor:
    """A whole file as (N,) float32 at ``sample_rate``: channels averaged, resampled where needed.

    Raises:
        AudioError: where it is missing, no audio, damaged, empty, or holds values that are no numbers.
    """
    _check_file(path)
    try:
        samples, rate = soundfile.read(os.fsencode(path), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, OSError, TypeError) as error:
        raise AudioError(f"{path}: not readable as audio ({_reason(error)})") from None
    waveform = torch.from_numpy(samples).mean(1) if samples.shape[1] > 1 else torch.from_numpy(samples[:, 0])
    if not len(waveform):
        raise AudioError(f"{path}: holds no samples")
    if num_bad := int((~waveform.isfinite()).sum()):
        raise AudioError(f"{path}: {num_bad} of {len(waveform)} samples are NaN or infinite")
    return resample(waveform, rate, sample_rate)


class Spans:
    """A file of which parts are read; of another rate than asked for, it is read and resampled whole.

    Args:
        path: of the file.
        sample_rate: wanted.

    Raises:
        AudioError: as `read` does.
    """

    def __init__(self, path: Path, sample_rate: int = 16000):
        self.path, self.info = path, _info(path)
        self.whole = None if self.info.samplerate == sample_rate else read(path, sample_rate)
        self.num_samples = self.info.frames if self.whole is None else len(self.whole)

    def read(self, start: int, stop: int) -> Tensor:
        """Samples ``start`` to ``stop``, (stop - start,) float32.

        Raises:
            AudioError: where they are damaged, missing, or no numbers.
        """
        if self.whole is not None:
            return self.whole[start:stop]
        try:
            samples, _ = soundfile.read(os.fsencode(self.path), stop - start, start, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError, OSError, TypeError) as error:
            raise AudioError(f"{self.path}: not readable as audio ({_reason(error)})") from None
        if len(samples) < stop - start:
            raise AudioError(f"{self.path}: ends {stop - start - len(samples)} samples before its header says")
        waveform = torch.from_numpy(samples).mean(1)
        if not waveform.isfinite().all():
            raise AudioError(f"{self.path}: samples {start} to {stop} hold some that are NaN or infinite")
        return waveform


def num_samples(path: Path, sample_rate: int = 16000) -> int:
    """Length after resampling, by the file's header: for ordering before anything is read.

    Raises:
        AudioError: where there is no readable header.
    """
    info = _info(path)
    return -(-info.frames * sample_rate // info.samplerate)


def resample(waveform: Tensor, rate: int, target: int) -> Tensor:
    """(N,) at ``rate`` to (N',) at ``target`` Hz, with a Kaiser window as wide as resampy's ``kaiser_best``.

    The filter's size is the product of the ratio's two numbers: odd rates are taken at the nearest ratio whose product
    stays small, about 1e-5 off at most; all usual ones are exact.
    """
    if rate == target:
        return waveform
    ratio = Fraction(rate, target).limit_denominator(math.isqrt(LARGEST_FILTER * target // rate))
    return torchaudio.functional.resample(
        waveform,
        ratio.numerator,
        ratio.denominator,
        lowpass_filter_width=64,
        rolloff=0.9475937167399596,
        resampling_method="sinc_interp_kaiser",
        beta=14.769656459379492,
    )


def wav_bytes(waveform: Tensor, sample_rate: int = 16000) -> bytes:
    """(N,) as a WAV file of floats: mixtures may pass full scale, and clipping would be another kind of noise."""
    content = io.BytesIO()
    soundfile.write(content, waveform.numpy(), sample_rate, format="WAV", subtype="FLOAT")
    return content.getvalue()


def batches(lengths: Sequence[int], max_total: int) -> Iterator[list[int]]:
    """Indices in batches of similar length: longest first, each batch at most ``max_total`` in all.

    A single utterance longer than ``max_total`` is a batch by itself.
    """
    batch: list[int] = []
    total = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and total + lengths[index] > max_total:
            yield batch
            batch, total = [], 0
        batch.append(index)
        total += lengths[index]
    if batch:
        yield batch


def _absolute(path: Path) -> Path:
    """Without ".." and without following links, so that a name stays the name it was given."""
    return Path(os.path.abspath(path))


def _expand(text: str) -> list[Recording]:
    path = Path(text)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        return [Recording(path=_absolute(file), name=str(file.relative_to(path))) for file in files]
    if path.suffix == ".tsv":
        return read_manifest(path)
    if path.exists():
        return [Recording(path=_absolute(path), name=path.name)]
    matches = sorted(match for match in glob.glob(text, recursive=True) if Path(match).exists())
    if not matches:
        raise UsageError(f"{text}: no such file, folder or manifest, and as a pattern it matches nothing")
    return [recording for match in matches for recording in _expand(match)]


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise AudioError(f"{path}: is a folder")
    if not path.is_file():
        raise AudioError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: empty file (0 bytes)")


def _info(path: Path) -> soundfile._SoundFileInfo:
    _check_file(path)
    try:
        return soundfile.info(os.fsencode(path))
    except (soundfile.LibsndfileError, RuntimeError, OSError, TypeError) as error:
        raise AudioError(f"{path}: not readable as audio ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    text = getattr(error, "error_string", None) or str(error) or type(error).__name__
    return text.strip().rstrip(".")
