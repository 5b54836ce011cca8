"""The tasks' corpora, built from the shared recordings in the layouts that s3prl's tasks read.

Each builder writes into an empty folder; ``final`` is where that folder will lie when it is whole, for lists of
absolute paths. Training audio is clean (but for enhancement, whose input is noisy), or at the ratios of the test audio;
test audio comes clean and at 20, 10 and 0 dB of recorded noise that no training audio holds.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from sources import CONDITIONS, RATE, Clip, clips, generator, heard, noise_bank, noise_for, noisy, piece, pieces, save
from torch import Tensor

from daisy import _files
from daisy.errors import OutputError, UsageError

RECIPE = 2
"""Goes up when the same seed makes other corpora."""
PIECE_SEC = {"train": 2.0, "dev": 4.0, "test": 4.0}
"""Of the tasks with a recurrent network over 100 frames a second, which is what costs time."""
MIXED_SNRS_DB = (0.0, 5.0, 10.0, 15.0)
"""VoiceBank-DEMAND's for training."""
SLOTS = {"action": "coffeeDrink", "object": "size", "location": "roast"}
"""s3prl's three columns, which it names in its code, to the orders' slots that fill them best."""
Builder = Callable[[Path, Path, int, int | None, str], None]
SILENCE, UNKNOWN, BACKGROUND = "_silence_", "_unknown_", "_background_noise_"


def recognition(set_name: str) -> Builder:
    """ASR: LibriSpeech layout, character dictionary and length tables."""

    def build(out: Path, final: Path, seed: int, limit: int | None, training: str) -> None:
        letters: Counter[str] = Counter()
        for split in ("train", "dev", "test"):
            spoken = [clip for clip in clips(set_name, split, limit) if clip.text]
            if split == "train":
                letters.update("".join(clip.text.upper().replace(" ", "|") for clip in spoken))
            if split != "test":
                _librispeech(out, split, [heard(clip, training, seed) for clip in spoken])
                continue
            for name, snr in CONDITIONS.items():
                _librispeech(out, f"test-{name}", [noisy(clip, snr, "test", seed) for clip in spoken])
        lines = [f"{letter} {count}\n" for letter, count in letters.most_common()]
        _files.write(out / "char.dict", "".join(lines).encode())

    return build


def _librispeech(out: Path, split: str, spoken: list[Clip]) -> None:
    table = [("file_path", "length", "label")]
    texts: dict[Path, list[str]] = {}
    for index, clip in enumerate(spoken):
        folder = Path(split) / clip.speaker / "1"
        name = f"{clip.speaker}-1-{index:04d}"
        save({out / folder / f"{name}.flac": clip.waveform})
        table.append((str(folder / f"{name}.flac"), str(len(clip.waveform) // (RATE // 100)), ""))
        texts.setdefault(folder / f"{clip.speaker}-1.trans.txt", []).append(f"{name} {clip.text.upper()}\n")
    for path, lines in texts.items():
        _files.write(out / path, "".join(lines).encode())
    _csv(out / "lengths" / f"{split}.csv", table)


def speakers(out: Path, final: Path, seed: int, limit: int | None, training: str) -> None:
    """SID: VoxCeleb1 layout, its list of (1 train, 2 dev, 3 test, path).

    Speakers of whom there are ten recordings or more: the six of digits, three of librispeech's train split and six of
    its test split. Whole recordings go to one part (the digits' takes 0 to 4, test), and are then cut into 2 s.
    """
    taken: dict[str, dict[int, list[Clip]]] = {}
    for clip in clips("digits", "train") + clips("digits", "test"):
        take = int(clip.name.split("_")[-1])
        taken.setdefault(f"digits {clip.speaker}", {}).setdefault(3 if take < 5 else 2 if take == 9 else 1, []).append(
            clip
        )
    read: dict[str, list[Clip]] = {}
    for clip in clips("librispeech", "train") + clips("librispeech", "test"):
        read.setdefault(f"librispeech {clip.speaker}", []).append(clip)
    for speaker, found in read.items():
        if len(found) >= 10:
            order = torch.randperm(len(found), generator=generator(seed, speaker)).tolist()
            mixed = [found[index] for index in order][:20]
            fifth = len(mixed) // 5
            taken[speaker] = {2: mixed[:fifth], 3: mixed[fifth : 3 * fifth], 1: mixed[3 * fifth :]}
    lists: dict[str, list[str]] = {name: [] for name in CONDITIONS}
    for number, speaker in enumerate(sorted(taken)):
        for part, found in sorted(taken[speaker].items()):
            for index, clip in enumerate(p for whole in found for p in pieces(whole, 2.0)):
                if limit is not None and index >= max(2, limit // 10):
                    break
                relative = f"id{10001 + number}/{part}/{index:05d}.wav"
                for name, snr in CONDITIONS.items():
                    if name == "clean" or part == 3:
                        recorded = noisy(clip, snr, "test", seed) if part == 3 else heard(clip, training, seed)
                        save({out / name / "dev" / "wav" / relative: recorded.waveform})
                        lists[name].append(f"{part} {relative}\n")
    for name, lines in lists.items():
        _files.write(out / name / "split.txt", "".join(lines).encode())


def enhancement(out: Path, final: Path, seed: int, limit: int | None, training: str) -> None:
    """SE: VoiceBank layout, noisy/wav.scp and clean/wav.scp; of each recording a piece, for training two."""
    for split in ("train", "dev", "test"):
        found = clips("librispeech", split, limit)
        spoken = [piece(clip, PIECE_SEC[split], seed) for clip in found]
        if split == "train":
            spoken = [part for clip in found for part in pieces(clip, PIECE_SEC[split])[:2]]
        ratios: dict[str, Sequence[float | None]] = {split: MIXED_SNRS_DB}
        if split == "test":
            ratios = {f"test-{name}": [snr] for name, snr in CONDITIONS.items()}
        for name, snrs in ratios.items():
            lists: dict[str, list[tuple[str, Path]]] = {"noisy": [], "clean": []}
            for index, clip in enumerate(spoken):
                degraded = noisy(clip, snrs[index % len(snrs)], "test" if split == "test" else "train", seed)
                audio = {"noisy": degraded.waveform, "clean": clip.waveform}
                _mixture(out, final, name, f"{clip.name}", audio, lists)
            _wav_lists(out, name, lists)


def separation(out: Path, final: Path, seed: int, limit: int | None, training: str) -> None:
    """SS: LibriMix layout, mix_clean, s1 and s2; pieces as long as the shorter talker's ("min").

    In the noisy test sets the lists of ``mix_clean`` hold the mixture with noise, LibriMix's mix_both: so the same
    configuration reads them.
    """
    for split, count in (("train", 2400), ("dev", 40), ("test", 60)):
        found = clips("librispeech", split, limit)
        spoken = [part for clip in found for part in pieces(clip, PIECE_SEC[split])[:4]]
        pairs = _pairs(spoken, count if limit is None else min(count, limit), generator(seed, split, "pairs"))
        parts = {split: None} if split != "test" else {f"test-{name}": snr for name, snr in CONDITIONS.items()}
        for name, snr in parts.items():
            lists: dict[str, list[tuple[str, Path]]] = {"mix_clean": [], "s1": [], "s2": []}
            for index, (first, second) in enumerate(pairs):
                mixture = Clip(f"{index:04d}", first + second)
                mixed = noisy(mixture, snr, "test", seed) if split == "test" else heard(mixture, training, seed)
                audio = {"mix_clean": mixed.waveform, "s1": first, "s2": second}
                _mixture(out, final, name, mixture.name, audio, lists)
            _wav_lists(out, name, lists)


def _pairs(spoken: list[Clip], count: int, draws: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Pieces of two speakers, equally loud but for up to 2.5 dB."""
    found = []
    while len(found) < count:
        first, second = (spoken[i] for i in torch.randint(len(spoken), (2,), generator=draws).tolist())
        if first.speaker != second.speaker:
            length = min(len(first.waveform), len(second.waveform))
            a, b = (clip.waveform[:length] / clip.waveform[:length].square().mean().sqrt() for clip in (first, second))
            gain_db = 5.0 * float(torch.rand(1, generator=draws)) - 2.5
            found.append((0.05 * a, 0.05 * b * 10 ** (gain_db / 20)))
    return found


def _mixture(
    out: Path, final: Path, split: str, name: str, audio: dict[str, Tensor], lists: dict[str, list[tuple[str, Path]]]
) -> None:
    paths = {kind: Path(split) / "wav" / kind / f"{name}.wav" for kind in audio}
    save({out / paths[kind]: waveform for kind, waveform in audio.items()})
    for kind, path in paths.items():
        lists[kind].append((name, final / path))


def _wav_lists(out: Path, split: str, lists: dict[str, list[tuple[str, Path]]]) -> None:
    for kind, lines in lists.items():
        _files.write(out / split / kind / "wav.scp", "".join(f"{name} {path}\n" for name, path in lines).encode())


def keywords(out: Path, final: Path, seed: int, limit: int | None, training: str) -> None:
    """KS: Speech Commands layout: a folder a word, ``_background_noise_`` beside those of training, and test folders.

    Unknown words are pieces of read speech, silence is recorded noise.
    """
    for split, count in (("train", 150), ("dev", 12), ("test", 28)):
        spoken = clips("keywords", split, limit)
        others = [replace(piece(clip, 3.0, seed), label=UNKNOWN) for clip in clips("librispeech", split, count)]
        for index, clip in enumerate(spoken + (others[: max(2, limit // 10)] if limit is not None else others)):
            if split == "test":
                for name, snr in CONDITIONS.items():
                    path = out / f"test-{name}" / clip.label / f"{index:04d}.wav"
                    save({path: noisy(clip, snr, "test", seed).waveform})
            else:
                path = out / "train" / clip.label / _named_for(split, f"{index:04d}")
                save({path: heard(clip, training, seed).waveform})
    # Of one second, which is what s3prl cuts out of longer ones at random: so a feature cache knows them again.
    seconds = [part for noise in noise_bank("train").recordings for part in pieces(Clip("", noise), 1.0)[:2]]
    for index, part in enumerate(part for part in seconds if len(part.waveform) == RATE):
        save({out / "train" / BACKGROUND / f"{index:04d}.wav": part.waveform})
    for index in range(28 if limit is None else 2):
        silence = noise_for(Clip(f"silence {index}", torch.zeros(2 * RATE)), "test", seed)
        for name in CONDITIONS:
            save({out / f"test-{name}" / SILENCE / f"{index:04d}.wav": silence})


def _named_for(split: str, name: str) -> str:
    """A file name that Speech Commands' rule puts into a split: the hash of what is before ``_nohash_``, by percent."""
    for attempt in range(10000):
        stem = f"{name}{attempt:04d}"
        share = int(hashlib.sha1(stem.encode()).hexdigest(), 16) % 2**27 * 100 / (2**27 - 1)
        if share < 10 if split == "dev" else share >= 20:
            return f"{stem}_nohash_0.wav"
    raise AssertionError("one name in ten falls into dev")


def commands(out: Path, final: Path, seed: int, limit: int | None, training: str) -> None:
    """IC: Fluent Speech Commands layout; three of the orders' slots in s3prl's three columns, none where not said."""
    header = ("path", "speakerId", "transcription", *SLOTS)
    spoken = {split: clips("commands", split, limit) for split in ("train", "dev", "test")}
    known = {column: {clip.slots.get(slot, "none") for clip in spoken["train"]} for column, slot in SLOTS.items()}
    for name, snr in CONDITIONS.items():
        for split, found in spoken.items():
            table: list[Sequence[str]] = [header]
            for clip in found:
                values = {column: clip.slots.get(slot, "none") for column, slot in SLOTS.items()}
                if any(value not in known[column] for column, value in values.items()):
                    continue  # s3prl has no class for what training never says
                path = f"wavs/{split}/{clip.name}.wav"
                if name == "clean" or split == "test":
                    recorded = noisy(clip, snr, "test", seed) if split == "test" else heard(clip, training, seed)
                    save({out / name / path: recorded.waveform})
                table.append((path, clip.speaker, "", *values.values()))
            _csv(out / name / "data" / f"{'valid' if split == 'dev' else split}_data.csv", table)


def _csv(path: Path, table: Iterable[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows(table)


BUILDERS: dict[str, Builder] = {
    "asr": recognition("mboshi"),
    "asr_english": recognition("librispeech"),
    "sid": speakers,
    "se": enhancement,
    "ss": separation,
    "ks": keywords,
    "ic": commands,
}


def build(
    task: str,
    root: Path,
    seed: int = 0,
    limit: int | None = None,
    overwrite: bool = False,
    training: str = "clean",
) -> Path:
    """A task's corpus, whole or absent: built beside, then renamed. One that is there with the same settings stays.

    Args:
        task: of `BUILDERS`.
        root: folder that holds the tasks' corpora.
        seed: of pieces, noise excerpts and pairs.
        limit: recordings a split at most, to try things out.
        overwrite: build again what other settings built.
        training: "clean", or "noisy": train and dev audio clean and at the test sets' ratios, by chance, with noise of
            the train split. Enhancement's has noise anyway.

    Returns:
        The corpus's folder.

    Raises:
        OutputError: where a corpus with other settings is there, or the folder cannot be written.
        UsageError: where there is no such task.
    """
    if task not in BUILDERS:
        raise UsageError(f"no corpus for {task!r}: there are {', '.join(BUILDERS)}")
    final = (root / task).resolve()
    settings: dict = {
        "format_version": 1,
        "recipe": RECIPE,
        "task": task,
        "seed": seed,
        "limit": limit,
        "folder": str(final),
    }
    if training != "clean":
        settings["training"] = training
    written = final / "corpus.json"
    if written.is_file():
        if json.loads(written.read_text(encoding="utf-8")) == settings:
            return final
        if not overwrite:
            raise OutputError(f"{final}: built or lying elsewhere with other settings; remove it or give --overwrite")
    beside = final.with_name(f".{task}.part")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        BUILDERS[task](beside, final, seed, limit, training)
        _files.write_json(beside / "corpus.json", settings)
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)
    except OSError as error:
        raise OutputError(f"{final}: cannot be written ({error.strerror or error})") from None
    return final
