"""A user's own LibriSpeech, Libri-light, VoxCeleb1, VoiceBank-DEMAND and Libri2Mix: missing parts, and samples.

MiniSUPERB (arXiv:2305.19011) trains on 10 hours of Libri-light, 11 utterances of each VoxCeleb1 speaker, and 1,000
recordings each of VoiceBank-DEMAND (seed 8830) and Libri2Mix (seed 7); dev and test sets are complete. Samples are
drawn as in its scripts, so that the same corpora give the same samples. Corpora are linked, never copied or changed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import soundfile

from benchmarks.minisuperb.corpora import replace_folder
from benchmarks.minisuperb.draft import write_table
from benchmarks.shared.recordings import SAMPLE_RATE
from daisy import _files
from daisy.errors import UsageError

SAMPLED = 1000
SE_SEED, SS_SEED = 8830, 7
UTTERANCES_PER_SPEAKER, SID_SEED = 11, 42
DEV_SPEAKERS = ("p226", "p287")
"""VoiceBank's training speakers that s3prl keeps for dev."""
LETTERS = "|ETAONIHSRDLUMWCFGYPBVK'XJQZ"


@dataclass(frozen=True)
class Part:
    """A part that a corpus's folder must contain."""

    pattern: str
    """Pattern of `Path.glob`."""
    count: int
    """Minimum number of matches."""
    what: str


@dataclass(frozen=True)
class Corpus:
    """A corpus that users have to provide."""

    task: str
    title: str
    parts: tuple[Part, ...]


CORPORA = {
    "librispeech": Corpus(
        "asr",
        "LibriSpeech (openslr.org/12): the folder that holds dev-clean and test-clean",
        (
            Part("dev-clean/*/*/*.flac", 2703, "utterances"),
            Part("dev-clean/*/*/*.trans.txt", 97, "transcripts"),
            Part("test-clean/*/*/*.flac", 2620, "utterances"),
            Part("test-clean/*/*/*.trans.txt", 87, "transcripts"),
        ),
    ),
    "librilight": Corpus(
        "asr",
        "Libri-light's librispeech_finetuning (10 h): the folder that holds 1h and 9h",
        (
            Part("1h/*/*/*/*/*.flac", 200, "utterances of the first hour"),
            Part("9h/*/*/*/*.flac", 2000, "utterances of the other nine"),
            Part("**/*.trans.txt", 2, "transcripts"),
        ),
    ),
    "voxceleb": Corpus(
        "sid",
        "VoxCeleb1, with dev/wav and test/wav, and veri_test_class.txt (iden_split.txt) in it",
        (
            Part("dev/wav/id1*", 1211, "speakers"),
            Part("test/wav/id1*", 40, "speakers"),
            Part("*_*t*.txt", 1, "list of (1 train, 2 dev, 3 test, path): veri_test_class.txt or iden_split.txt"),
        ),
    ),
    "voicebank": Corpus(
        "se",
        "VoiceBank-DEMAND of 28 speakers: the folder that holds clean_trainset_28spk_wav (at any sampling rate)",
        (
            Part("clean_trainset_28spk_wav*/*.wav", 11572, "clean training recordings"),
            Part("noisy_trainset_28spk_wav*/*.wav", 11572, "noisy training recordings"),
            Part("clean_testset_wav*/*.wav", 824, "clean test recordings"),
            Part("noisy_testset_wav*/*.wav", 824, "noisy test recordings"),
        ),
    ),
    "libri2mix": Corpus(
        "ss",
        "Libri2Mix, min mode, 16 kHz: the folder that holds wav16k/min",
        tuple(
            Part(f"wav16k/min/{split}/{kind}/*.wav", count, f"files of {kind}")
            for split, count in (("train-100", 13900), ("dev", 3000), ("test", 3000))
            for kind in ("mix_clean", "s1", "s2")
        ),
    ),
}


def find_missing(name: str, folder: Path | None) -> list[str]:
    """List what a corpus lacks, one line per part; empty if it is complete.

    Args:
        name: name of a corpus in `CORPORA`.
        folder: the user's folder; None if not given.
    """
    corpus = CORPORA[name]
    if folder is None:
        return [f"--{name} not given: {corpus.title}"]
    if not folder.is_dir():
        return [f"{folder}: no such folder; wanted is {corpus.title}"]
    lines = []
    for part in corpus.parts:
        count = sum(1 for _ in folder.glob(part.pattern))
        if count < part.count:
            lines.append(f"{folder / part.pattern}: {count} of {part.count} {part.what}")
    return lines


def draw_names(names: Iterable[str], count: int, seed: int) -> list[str]:
    """Draw ``count`` names as MiniSUPERB does: sort, shuffle with Python's generator, take the first, and sort again.

    Raises:
        UsageError: if there are fewer names.
    """
    ordered = sorted(names)
    if len(ordered) < count:
        raise UsageError(f"cannot draw {count} of {len(ordered)} recordings")
    random.Random(seed).shuffle(ordered)
    return sorted(ordered[:count])


def draw_speakers(lines: Iterable[str], count: int, seed: int) -> list[str]:
    """Draw ``count`` training utterances of each speaker from a VoxCeleb1 split list; lines of dev and test are kept.

    Raises:
        UsageError: if a speaker has fewer, or a line is malformed.
    """
    import pandas

    rows = [line.split() for line in lines if line.strip()]
    if any(len(row) != 2 or row[0] not in ("1", "2", "3") for row in rows):
        raise UsageError("not a list of VoxCeleb1's splits: lines of (1, 2 or 3) and a path")
    frame = pandas.DataFrame(rows, columns=["split", "path"])
    train = frame[frame.split == "1"]
    speakers = train.path.str.split("/").str[0]
    few = Counter(speakers)
    if any(number < count for number in few.values()):
        raise UsageError(f"a speaker has fewer than {count} training utterances")
    kept = [utterances.sample(count, random_state=seed) for _, utterances in train.groupby(speakers)]
    table = pandas.concat([*kept, frame[frame.split == "2"], frame[frame.split == "3"]])
    return [f"{row.split} {row.path}" for row in table.itertuples()]


def build_recognition(out: Path, folders: dict[str, Path]) -> None:
    """Build ASR: links, length tables and the character dictionary."""
    _link(folders["librilight"], out / "train")
    for split in ("dev-clean", "test-clean"):
        _link(folders["librispeech"] / split, out / split)
    for split in ("train", "dev-clean", "test-clean"):
        table = [("file_path", "length", "label")]
        for path in sorted((out / split).resolve().rglob("*.flac")):
            inside = Path(split) / path.relative_to((out / split).resolve())
            table.append((str(inside), str(soundfile.info(path).frames // (SAMPLE_RATE // 100)), ""))
        write_table(out / "lengths" / f"{split}.csv", table)
    _files.write(out / "char.dict", "".join(f"{letter} 1\n" for letter in LETTERS).encode())


def build_speakers(out: Path, folders: dict[str, Path]) -> None:
    """Build SID: a link and the sampled list."""
    root = folders["voxceleb"]
    _link(root, out / "VoxCeleb1")
    lists = [root / name for name in ("veri_test_class.txt", "iden_split.txt") if (root / name).is_file()]
    if not lists:
        raise UsageError(f"{root}: neither veri_test_class.txt nor iden_split.txt is in it")
    lines = lists[0].read_text(encoding="utf-8").splitlines()
    sampled = draw_speakers(lines, UTTERANCES_PER_SPEAKER, SID_SEED)
    _files.write(out / "split.txt", "".join(f"{line}\n" for line in sampled).encode())


def build_enhancement(out: Path, folders: dict[str, Path]) -> None:
    """Build SE: lists of the sampled training recordings, and of all of dev and test."""
    root = folders["voicebank"]
    stems = {}
    for kind in ("clean", "noisy"):
        for split in ("trainset_28spk", "testset"):
            folder = next(path for path in sorted(root.glob(f"{kind}_{split}_wav*")) if path.is_dir())
            stems[kind, split] = {path.stem: path for path in folder.glob("*.wav")}
    pool = set(stems["clean", "trainset_28spk"]) & set(stems["noisy", "trainset_28spk"])
    dev = {stem for stem in pool if stem.startswith(DEV_SPEAKERS)}
    test = set(stems["clean", "testset"]) & set(stems["noisy", "testset"])
    chosen = {"train": draw_names(pool - dev, SAMPLED, SE_SEED), "dev": sorted(dev), "test": sorted(test)}
    for split, names in chosen.items():
        for kind in ("clean", "noisy"):
            paths = stems[kind, "testset" if split == "test" else "trainset_28spk"]
            _write_list(out / split / kind, {name: paths[name] for name in names})


def build_separation(out: Path, folders: dict[str, Path]) -> None:
    """Build SS: lists of the sampled training mixtures, and of all of dev and test."""
    root = folders["libri2mix"] / "wav16k" / "min"
    for source, split in (("train-100", "train"), ("dev", "dev"), ("test", "test")):
        paths = {k: {p.stem: p for p in (root / source / k).glob("*.wav")} for k in ("mix_clean", "s1", "s2")}
        whole = set.intersection(*(set(of_kind) for of_kind in paths.values()))
        names = draw_names(whole, SAMPLED, SS_SEED) if split == "train" else sorted(whole)
        for kind, of_kind in paths.items():
            _write_list(out / split / kind, {name: of_kind[name] for name in names})


def _link(target: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target.resolve(), target_is_directory=True)


def _write_list(folder: Path, paths: dict[str, Path]) -> None:
    _files.write(folder / "wav.scp", "".join(f"{name} {path.resolve()}\n" for name, path in paths.items()).encode())


BUILDERS: dict[str, Callable[[Path, dict[str, Path]], None]] = {
    "asr": build_recognition,
    "sid": build_speakers,
    "se": build_enhancement,
    "ss": build_separation,
}


def build_corpus(task: str, root: Path, folders: dict[str, Path]) -> Path:
    """Build a task's lists, completely or not at all, from corpora in which `find_missing` finds nothing missing.

    Args:
        task: name of a task in `BUILDERS`.
        root: folder of all tasks' corpora.
        folders: the user's folders, by names in `CORPORA`.

    Raises:
        OutputError: if they cannot be written.
        UsageError: if a sample cannot be drawn.
    """
    return replace_folder(root / task, lambda folder: BUILDERS[task](folder, folders))
