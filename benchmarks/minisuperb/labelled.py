"""Corpora of the tasks with labels: ASR, SID, KS and IC."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.minisuperb import sources
from benchmarks.minisuperb.draft import Draft, list_versions
from benchmarks.minisuperb.sources import CONDITIONS, Clip, cut_piece, cut_pieces, make_generator
from benchmarks.shared.recordings import SAMPLE_RATE

SLOTS = {"action": "coffeeDrink", "object": "size", "location": "roast"}
"""Maps the three columns that s3prl's code names to the slots of the orders that fit them best."""
SILENCE, UNKNOWN, BACKGROUND = "_silence_", "_unknown_", "_background_noise_"
UNKNOWN_WORDS = {"train": 150, "dev": 12, "test": 28}
"""Maximum number of pieces of read speech per split, from evenly spread recordings; this gives 113, 11 and 24."""
SILENCES = 28
TRAIN, DEV, TEST = 1, 2, 3
"""VoxCeleb1's numbers for its parts."""
MIN_RECORDINGS, MAX_RECORDINGS = 10, 20
"""Number of recordings of a librispeech speaker."""


def build_recognition(*sets: str, max_train: int | None = None) -> Callable[[Draft], None]:
    """Return a function that builds ASR: LibriSpeech layout, character dictionary and length tables.

    Args:
        sets: shared sets with text.
        max_train: maximum number of training recordings per set, chosen by `spread_evenly`.
    """

    def build(draft: Draft) -> None:
        letters: Counter[str] = Counter()
        for split in ("train", "dev", "test"):
            limit = max_train if split == "train" and draft.limit is None else draft.limit
            clips = [clip for name in sets for clip in sources.read_clips(name, split, limit) if clip.text]
            if split == "train":
                letters.update("".join(clip.text.upper().replace(" ", "|") for clip in clips))
            for name, snr_db in list_versions(split).items():
                _write_librispeech(draft, name, [draft.degrade(clip, split, snr_db) for clip in clips])
        draft.write_lines("char.dict", (f"{letter} {count}" for letter, count in letters.most_common()))

    return build


def _write_librispeech(draft: Draft, split: str, clips: list[Clip]) -> None:
    table = [("file_path", "length", "label")]
    texts: dict[Path, list[str]] = {}
    for index, clip in enumerate(clips):
        folder = Path(split) / clip.speaker / "1"
        name = f"{clip.speaker}-1-{index:04d}"
        draft.save({folder / f"{name}.flac": clip.waveform})
        table.append((str(folder / f"{name}.flac"), str(len(clip.waveform) // (SAMPLE_RATE // 100)), ""))
        texts.setdefault(folder / f"{clip.speaker}-1.trans.txt", []).append(f"{name} {clip.text.upper()}")
    for path, lines in texts.items():
        draft.write_lines(path, lines)
    draft.write_table(Path("lengths") / f"{split}.csv", table)


def build_speakers(draft: Draft) -> None:
    """Build SID: VoxCeleb1 layout, and its list with lines of a part (1 train, 2 dev, 3 test) and a path.

    Its speakers have ten recordings or more: the six of digits, three of librispeech's train split and six of its test
    split. Each recording belongs to one part as a whole, and is then cut into pieces of 2 s.
    """
    speakers = {**_split_digits(), **_split_readers(draft.seed)}
    lists: dict[str, list[str]] = {name: [] for name in CONDITIONS}
    for number, speaker in enumerate(sorted(speakers)):
        for part, recordings in sorted(speakers[speaker].items()):
            for index, clip in enumerate(_cut_speech(recordings, draft.limit)):
                relative = f"id{10001 + number}/{part}/{index:05d}.wav"
                for name, snr_db in CONDITIONS.items():
                    if name == "clean" or part == TEST:
                        degraded = draft.degrade(clip, "test" if part == TEST else "train", snr_db)
                        draft.save({Path(name) / "dev" / "wav" / relative: degraded.waveform})
                        lists[name].append(f"{part} {relative}")
    for name, lines in lists.items():
        draft.write_lines(Path(name) / "split.txt", lines)


def _split_digits() -> dict[str, dict[int, list[Clip]]]:
    """Split the digits speakers' recordings: takes 0 to 4 are for test, 9 for dev."""
    speakers: dict[str, dict[int, list[Clip]]] = {}
    for clip in sources.read_clips("digits", "train") + sources.read_clips("digits", "test"):
        take = int(clip.name.split("_")[-1])
        part = TEST if take < 5 else DEV if take == 9 else TRAIN
        speakers.setdefault(f"digits {clip.speaker}", {}).setdefault(part, []).append(clip)
    return speakers


def _split_readers(seed: int) -> dict[str, dict[int, list[Clip]]]:
    """Split the librispeech speakers' recordings: two fifths are for test, one for dev."""
    recordings: dict[str, list[Clip]] = {}
    for clip in sources.read_clips("librispeech", "train") + sources.read_clips("librispeech", "test"):
        recordings.setdefault(f"librispeech {clip.speaker}", []).append(clip)
    speakers = {}
    for speaker, clips in recordings.items():
        if len(clips) >= MIN_RECORDINGS:
            order = torch.randperm(len(clips), generator=make_generator(seed, speaker)).tolist()
            mixed = [clips[index] for index in order][:MAX_RECORDINGS]
            fifth = len(mixed) // 5
            speakers[speaker] = {DEV: mixed[:fifth], TEST: mixed[fifth : 3 * fifth], TRAIN: mixed[3 * fifth :]}
    return speakers


def _cut_speech(recordings: list[Clip], limit: int | None) -> Iterator[Clip]:
    """Yield pieces of 2 s; only a few if the number of recordings is limited."""
    pieces = [piece for recording in recordings for piece in cut_pieces(recording, 2.0)]
    yield from pieces if limit is None else pieces[: max(2, limit // 10)]


def build_keywords(draft: Draft) -> None:
    """Build KS: Speech Commands layout, a folder per word, background noise in the training folder, and test folders.

    Unknown words are pieces of read speech; silence is recorded noise.
    """
    for split, count in UNKNOWN_WORDS.items():
        others = [cut_piece(clip, 3.0, draft.seed) for clip in sources.read_clips("librispeech", split, count)]
        others = others if draft.limit is None else others[: max(2, draft.limit // 10)]
        words = draft.read_clips("keywords", split) + [replace(clip, label=UNKNOWN) for clip in others]
        for index, clip in enumerate(words):
            for name, snr_db in list_versions(split).items():
                folder = Path(name if split == "test" else "train") / clip.label
                file = f"{index:04d}.wav" if split == "test" else _name_for(split, f"{index:04d}")
                draft.save({folder / file: draft.degrade(clip, split, snr_db).waveform})
    _save_background(draft)
    for index in range(SILENCES if draft.limit is None else 2):
        silence = Clip(f"silence {index}", torch.zeros(2 * SAMPLE_RATE))
        noise = sources.draw_noise(silence, "test", draft.seed)
        draft.save({Path(name) / SILENCE / f"{index:04d}.wav": noise for name in list_versions("test")})


def _save_background(draft: Draft) -> None:
    """Save training noise in pieces of 1 s: s3prl cuts longer ones at random, and a cache would not recognise these."""
    recordings = sources.load_noise_bank("train").recordings
    seconds = [piece for noise in recordings for piece in cut_pieces(Clip("", noise), 1.0)[:2]]
    whole = [piece for piece in seconds if len(piece.waveform) == SAMPLE_RATE]
    for index, piece in enumerate(whole):
        draft.save({Path("train") / BACKGROUND / f"{index:04d}.wav": piece.waveform})


def _name_for(split: str, name: str) -> str:
    """Return a file name that Speech Commands' rule, a hash of the part before ``_nohash_``, assigns to a split."""
    for attempt in range(10000):
        stem = f"{name}{attempt:04d}"
        share = int(hashlib.sha1(stem.encode()).hexdigest(), 16) % 2**27 * 100 / (2**27 - 1)
        if share < 10 if split == "dev" else share >= 20:
            return f"{stem}_nohash_0.wav"
    raise AssertionError("one name in ten falls into dev")


def build_commands(draft: Draft) -> None:
    """Build IC: Fluent Speech Commands layout; three slots of the orders fill s3prl's columns, "none" where absent."""
    clips = {split: draft.read_clips("commands", split) for split in ("train", "dev", "test")}
    known = {column: {clip.slots.get(slot, "none") for clip in clips["train"]} for column, slot in SLOTS.items()}
    for name, snr_db in CONDITIONS.items():
        for split in clips:
            table: list[Sequence[str]] = [("path", "speakerId", "transcription", *SLOTS)]
            for clip in clips[split]:
                values = {column: clip.slots.get(slot, "none") for column, slot in SLOTS.items()}
                if any(value not in known[column] for column, value in values.items()):
                    continue  # s3prl has no class for values that do not occur in training
                path = f"wavs/{split}/{clip.name}.wav"
                if name == "clean" or split == "test":
                    draft.save({Path(name) / path: draft.degrade(clip, split, snr_db).waveform})
                table.append((path, clip.speaker, "", *values.values()))
            draft.write_table(Path(name) / "data" / f"{'valid' if split == 'dev' else split}_data.csv", table)
