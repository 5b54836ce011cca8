"""Layouts, as s3prl's own readers read them."""

import csv
import dataclasses
import hashlib
from collections import Counter

import pytest
import soundfile
import torch

from daisy.audio import mixing
from daisy.errors import OutputError, UsageError

CONDITIONS = ("clean", "20", "10", "0")


def audio(path):
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == 16000
    assert samples.ndim == 1
    return torch.from_numpy(samples)


def snr(clean, degraded):
    return 10 * torch.log10(clean.square().mean() / (degraded - clean).square().mean())


def lists(folder):
    return dict(line.split(maxsplit=1) for line in (folder / "wav.scp").read_text().splitlines())


@pytest.mark.filterwarnings("ignore")
def test_recognition_is_read_by_s3prl(corpora, tmp_path):
    dataset = pytest.importorskip("s3prl.downstream.asr.dataset", reason="needs s3prl")
    folder = corpora.build("asr", tmp_path)
    dictionary = dataset.Dictionary.load(str(folder / "char.dict"))
    for split, count in (("train", 4), ("dev", 2), *((f"test-{c}", 3) for c in CONDITIONS)):
        found = dataset.SequenceDataset(split, 1, dictionary, str(folder), str(folder / "lengths"), **{split: [split]})
        assert len(found) == count
        waveforms, labels, names = found[0]
        assert len(waveforms[0]) == 16000
        assert len(names) == 1
        assert dictionary.unk() not in labels[0]
    said = {dictionary.string(found[index][1][0]).replace(" ", "") for index in range(3)}
    assert "MBÓYI|A|DÍ|" in said


@pytest.mark.filterwarnings("ignore")
def test_speakers_are_read_by_s3prl(corpora, tmp_path, monkeypatch):
    dataset = pytest.importorskip("s3prl.downstream.voxceleb1.dataset", reason="needs s3prl")
    folder = corpora.build("sid", tmp_path / "corpora")
    for condition in CONDITIONS:
        monkeypatch.setattr(dataset, "CACHE_PATH", str(tmp_path / condition))
        root = folder / condition
        split = {part: [] for part in "123"}
        for line in (root / "split.txt").read_text().splitlines():
            split[line[0]].append(line[2:])
        tests = dataset.SpeakerClassifiDataset("test", root, str(root / "split.txt"))
        # two speakers of digits, and of librispeech two of each of train and test
        assert sorted(set(tests.label)) == list(range(6))
        assert len(tests) == len(split["3"])
        assert (split["1"] == []) == (condition != "clean")
    assert len(tests[0][0]) in (4800, 32000)


def test_recordings_of_a_speaker_are_kept_apart(corpora, tmp_path, monkeypatch):
    """Pieces of one recording share its level here, and no two recordings do."""
    levels = {}

    def levelled(set_name, split, limit=None):
        found = CLIPS(set_name, split, limit)
        return [
            dataclasses.replace(
                clip, waveform=torch.full_like(clip.waveform, 0.001 * (1 + levels.setdefault(clip.name, len(levels))))
            )
            for clip in found
        ]

    CLIPS = corpora.clips
    monkeypatch.setattr(corpora, "clips", levelled)
    root = corpora.build("sid", tmp_path) / "clean"
    parts = {}
    for path in root.rglob("*.wav"):
        level = round(1000 * float(audio(path)[0]))
        parts.setdefault(level, set()).add(path.parent.name)
    assert {part for found in parts.values() for part in found} == {"1", "2", "3"}
    assert all(len(found) == 1 for found in parts.values())
    pieces = sum(1 for _ in root.rglob("*.wav"))
    assert pieces > len(parts)  # recordings that are cut are among them


@pytest.mark.parametrize("task", ["asr", "sid", "se", "ks", "ic", "ss"])
def test_noise_of_the_test_split_is_in_test_audio_only(script, corpora, tmp_path, monkeypatch, task):
    """The stand-in's noises are tones here, one for each split."""
    tones = {"train": 1000, "test": 3000}

    def bank(split):
        wave = torch.sin(2 * torch.pi * tones[split] * torch.arange(5 * 16000) / 16000)
        return mixing.NoiseBank([0.3 * wave])

    with monkeypatch.context() as patch:
        for module in ("sources", "corpora"):
            patch.setattr(script(module), "noise_bank", bank)
        folder = corpora.build(task, tmp_path, limit=20, training="noisy")
    found = {"train": set(), "test": set()}
    for path in (each for each in folder.rglob("*") if each.suffix in (".wav", ".flac")):
        spectrum = torch.fft.rfft(audio(path)).abs()
        at = {name: spectrum[round(tone * len(audio(path)) / 16000)] for name, tone in tones.items()}
        is_test = any(part.startswith("test") or part == "3" for part in path.relative_to(folder).parts[:-1])
        beyond = [name for name, height in at.items() if height > 50 * spectrum.median()]
        found["test" if is_test else "train"].update(beyond)
    assert found == {"train": {"train"}, "test": {"test"}}


@pytest.mark.parametrize(("task", "source"), [("se", "noisy"), ("ss", "mix_clean")])
@pytest.mark.filterwarnings("ignore")
def test_mixtures_are_read_by_s3prl(corpora, tmp_path, task, source):
    name = {"se": "enhancement_stft2", "ss": "separation_stft2"}[task]
    dataset = pytest.importorskip(f"s3prl.downstream.{name}.dataset", reason="needs s3prl")
    folder = corpora.build(task, tmp_path, limit=6)
    targets = ["clean"] if task == "se" else ["s1", "s2"]
    for split in ("train", "dev", *(f"test-{c}" for c in CONDITIONS)):
        found = dataset.SeparationDataset(str(folder / split), src=[source], tgt=targets, n_fft=512, hop_length=160)
        assert len(found) > 0
        _, mixture, _, parts, _ = found[0]
        assert all(part.shape == mixture.shape for part in parts)


def test_noise_is_at_its_ratio_and_the_same_at_each(corpora, tmp_path):
    folder = corpora.build("se", tmp_path, limit=6)
    noises = {}
    for condition in CONDITIONS[1:]:
        clean, noisy = lists(folder / f"test-{condition}" / "clean"), lists(folder / f"test-{condition}" / "noisy")
        assert list(clean) == list(noisy)
        for name, path in clean.items():
            quiet, loud = audio(path), audio(noisy[name])
            assert float(snr(quiet, loud)) == pytest.approx(float(condition), abs=0.1)
            noises.setdefault(name, []).append((loud - quiet) / (loud - quiet).norm())
    for found in noises.values():
        assert float(found[0] @ found[2]) == pytest.approx(1, abs=1e-2)
    clean = lists(folder / "test-clean" / "clean")
    for name, path in lists(folder / "test-clean" / "noisy").items():
        assert torch.equal(audio(path), audio(clean[name]))


def test_mixtures_are_the_sum_of_two_speakers(corpora, tmp_path):
    folder = corpora.build("ss", tmp_path, limit=6)
    for split in ("train", "dev", "test-clean"):
        paths = [lists(folder / split / kind) for kind in ("mix_clean", "s1", "s2")]
        for name in paths[0]:
            mixture, first, second = (audio(found[name]) for found in paths)
            assert float((mixture - first - second).abs().max()) < 1e-3
            assert abs(float(10 * torch.log10(first.square().mean() / second.square().mean()))) < 2.6


@pytest.mark.filterwarnings("ignore")
def test_keywords_are_split_by_speech_commands_rule(corpora, tmp_path):
    folder = corpora.build("ks", tmp_path)
    shares = {}
    for path in (folder / "train").glob("*/*.wav"):
        if path.parent.name != "_background_noise_":
            stem = path.name.split("_nohash_")[0]
            shares[path] = int(hashlib.sha1(stem.encode()).hexdigest(), 16) % 2**27 * 100 / (2**27 - 1)
    words = Counter(path.parent.name for path, share in shares.items() if share < 10)
    assert words == {"alexa": 1, "smart mirror": 1, "_unknown_": 10}
    assert not any(10 <= share < 20 for share in shares.values())
    background = [audio(path) for path in (folder / "train" / "_background_noise_").glob("*.wav")]
    assert background
    assert all(len(noise) == 16000 for noise in background)
    for condition in CONDITIONS:
        found = {path.name for path in (folder / f"test-{condition}").iterdir()}
        assert found == {"alexa", "smart mirror", "_unknown_", "_silence_"}


def test_commands_have_a_value_in_each_column(corpora, tmp_path):
    folder = corpora.build("ic", tmp_path)
    for condition in CONDITIONS:
        tables = {}
        for split in ("train", "valid", "test"):
            with open(folder / condition / "data" / f"{split}_data.csv", newline="") as stream:
                tables[split] = list(csv.DictReader(stream))
        assert [row["object"] for row in tables["train"]] == ["large", "none", "none", "large"]
        assert {row["action"] for row in tables["train"]} == {"latte", "mocha"}
        # "small" is never said in training: s3prl has no class for it
        assert [row["object"] for row in tables["test"]] == ["large", "large"]
        assert all((folder / condition / row["path"]).is_file() for row in tables["test"])


def test_the_same_settings_give_the_same_bytes_and_are_not_built_again(corpora, tmp_path):
    first, second = (corpora.build("ss", tmp_path / name, limit=4) for name in "ab")
    for path in first.rglob("*.wav"):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()
    written = (first / "corpus.json").stat().st_mtime_ns
    assert corpora.build("ss", tmp_path / "a", limit=4) == first
    assert (first / "corpus.json").stat().st_mtime_ns == written
    with pytest.raises(OutputError, match="other settings; remove it or give --overwrite"):
        corpora.build("ss", tmp_path / "a", limit=5)
    assert corpora.build("ss", tmp_path / "a", limit=4, overwrite=True) == first
    assert (first / "corpus.json").stat().st_mtime_ns == written
    corpora.build("ss", tmp_path / "a", limit=5, overwrite=True)
    assert (first / "corpus.json").stat().st_mtime_ns != written
    with pytest.raises(UsageError, match="no corpus for 'sd'"):
        corpora.build("sd", tmp_path)


@pytest.mark.parametrize("task", ["asr", "sid", "ks", "ic", "ss"])
def test_training_audio_may_be_noisy(corpora, tmp_path, task):
    clean, noisy = (corpora.build(task, tmp_path / kind, limit=20, training=kind) for kind in ("clean", "noisy"))
    names = [path.relative_to(clean) for path in sorted(clean.rglob("*")) if path.suffix in (".wav", ".flac")]
    assert names == [path.relative_to(noisy) for path in sorted(noisy.rglob("*")) if path.suffix in (".wav", ".flac")]
    changed = {name for name in names if (clean / name).read_bytes() != (noisy / name).read_bytes()}
    test = {name for name in names if any(part.startswith(("test", "3")) for part in name.parts[:-1])}
    assert not changed & test
    of_words = {
        name for name in names if "s1" in name.parts or "s2" in name.parts or "_background_noise_" in name.parts
    }
    rest = set(names) - test - of_words
    assert changed <= rest
    assert len(changed) > len(rest) / 3  # three in four, of few


@pytest.mark.parametrize("task", ["asr", "sid", "se", "ks", "ic", "ss"])
def test_the_audio_that_upstreams_are_timed_on_is_the_test_sets(script, corpora, tmp_path, task):
    folder = corpora.build(task, tmp_path, limit=20)
    clean, noisy = (script("timing").recordings(task, folder, condition) for condition in ("clean", "0"))
    assert 1 <= len(clean) == len(noisy) <= 8
    assert [len(one) for one in clean] == [len(other) for other in noisy]
    assert not all(torch.equal(one, other) for one, other in zip(clean, noisy, strict=True))


def test_a_build_that_is_cut_off_leaves_no_corpus(corpora, tmp_path, monkeypatch):
    def cut_off(out, final, seed, limit, training):
        (out / "half").mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(corpora.BUILDERS, "ic", cut_off)
        with pytest.raises(KeyboardInterrupt):
            corpora.build("ic", tmp_path)
    assert not (tmp_path / "ic").exists()
    assert not (corpora.build("ic", tmp_path) / "half").exists()
