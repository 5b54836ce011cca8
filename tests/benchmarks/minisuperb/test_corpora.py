"""Layouts of the corpora, read by s3prl's own readers."""

import csv
import dataclasses
import functools
import hashlib
from collections import Counter

import pytest
import soundfile
import torch

from benchmarks.minisuperb import sources, timing
from benchmarks.minisuperb.corpora import BUILDERS, build_corpus
from benchmarks.minisuperb.sources import CONDITIONS
from daisy.audio import mixing
from daisy.errors import OutputError, UsageError

pytestmark = pytest.mark.usefixtures("stand_in")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Build a corpus that is only read, once."""
    root = tmp_path_factory.mktemp("corpora")

    @functools.cache
    def build(task, limit=None, training="clean"):
        return build_corpus(task, root / f"{limit}-{training}", limit=limit, training=training)

    return build


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
def test_recognition_is_read_by_s3prl(corpora):
    dataset = pytest.importorskip("s3prl.downstream.asr.dataset", reason="needs s3prl")
    folder = corpora("asr")
    dictionary = dataset.Dictionary.load(str(folder / "char.dict"))
    for split, count in (("train", 4), ("dev", 2), *((f"test-{c}", 3) for c in CONDITIONS)):
        table = str(folder / "lengths")
        recordings = dataset.SequenceDataset(split, 1, dictionary, str(folder), table, **{split: [split]})
        assert len(recordings) == count
        waveforms, labels, names = recordings[0]
        assert len(waveforms[0]) == 16000
        assert len(names) == 1
        assert dictionary.unk() not in labels[0]
    texts = {dictionary.string(recordings[index][1][0]).replace(" ", "") for index in range(3)}
    assert "MBÓYI|A|DÍ|" in texts


@pytest.mark.filterwarnings("ignore")
def test_speakers_are_read_by_s3prl(tmp_path, monkeypatch):
    dataset = pytest.importorskip("s3prl.downstream.voxceleb1.dataset", reason="needs s3prl")
    folder = build_corpus("sid", tmp_path / "corpora")
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


def test_recordings_of_a_speaker_are_kept_apart(tmp_path, monkeypatch):
    """Pieces of one recording share its level here, and no two recordings do."""
    levels = {}

    def levelled(set_name, split, limit=None):
        clips = read_clips(set_name, split, limit)
        return [
            dataclasses.replace(
                clip, waveform=torch.full_like(clip.waveform, 0.001 * (1 + levels.setdefault(clip.name, len(levels))))
            )
            for clip in clips
        ]

    read_clips = sources.read_clips
    monkeypatch.setattr(sources, "read_clips", levelled)
    root = build_corpus("sid", tmp_path) / "clean"
    parts = {}
    for path in root.rglob("*.wav"):
        level = round(1000 * float(audio(path)[0]))
        parts.setdefault(level, set()).add(path.parent.name)
    assert set().union(*parts.values()) == {"1", "2", "3"}
    assert all(len(of_recording) == 1 for of_recording in parts.values())
    pieces = sum(1 for _ in root.rglob("*.wav"))
    assert pieces > len(parts)  # recordings that are cut are among them


@pytest.mark.parametrize("task", ["asr", "sid", "se", "ks", "ic", "ss"])
def test_noise_of_the_test_split_is_in_test_audio_only(tmp_path, monkeypatch, task):
    """The stand-in's noises are tones here, one for each split."""
    tones = {"train": 1000, "test": 3000}

    def bank(split):
        wave = torch.sin(2 * torch.pi * tones[split] * torch.arange(5 * 16000) / 16000)
        return mixing.NoiseBank([0.3 * wave])

    with monkeypatch.context() as patch:
        patch.setattr(sources, "load_noise_bank", bank)
        folder = build_corpus(task, tmp_path, limit=20, training="noisy")
    heard = {"train": set(), "test": set()}
    for path in (path for path in folder.rglob("*") if path.suffix in (".wav", ".flac")):
        spectrum = torch.fft.rfft(audio(path)).abs()
        at = {name: spectrum[round(tone * len(audio(path)) / 16000)] for name, tone in tones.items()}
        is_test = any(part.startswith("test") or part == "3" for part in path.relative_to(folder).parts[:-1])
        beyond = [name for name, height in at.items() if height > 50 * spectrum.median()]
        heard["test" if is_test else "train"].update(beyond)
    assert heard == {"train": {"train"}, "test": {"test"}}


class QuickLibrosa:
    """What s3prl's readers of mixtures call of librosa, without its import of many seconds."""

    @staticmethod
    def load(path, sr):
        samples, rate = soundfile.read(path, dtype="float32")  # as librosa does
        assert sr in (None, rate)
        return samples, rate

    @staticmethod
    def stft(samples, n_fft, hop_length, win_length, window, center):
        assert (window, center) == ("hann", True)
        frames = torch.from_numpy(samples), n_fft, hop_length, win_length, torch.hann_window(win_length)
        return torch.stft(*frames, center=True, pad_mode="constant", return_complex=True).numpy()


@pytest.mark.parametrize(("task", "source"), [("se", "noisy"), ("ss", "mix_clean")])
@pytest.mark.filterwarnings("ignore")
def test_mixtures_are_read_by_s3prl(corpora, monkeypatch, task, source):
    name = {"se": "enhancement_stft2", "ss": "separation_stft2"}[task]
    dataset = pytest.importorskip(f"s3prl.downstream.{name}.dataset", reason="needs s3prl")
    monkeypatch.setattr(dataset, "librosa", QuickLibrosa)
    folder = corpora(task, limit=6)
    targets = ["clean"] if task == "se" else ["s1", "s2"]
    for split in ("train", "dev", *(f"test-{c}" for c in CONDITIONS)):
        mixtures = dataset.SeparationDataset(str(folder / split), src=[source], tgt=targets, n_fft=512, hop_length=160)
        assert len(mixtures) > 0
        _, mixture, _, parts, _ = mixtures[0]
        assert all(part.shape == mixture.shape for part in parts)


def test_noise_is_at_its_ratio_and_the_same_at_each(corpora):
    folder = corpora("se", limit=6)
    noises = {}
    for condition in list(CONDITIONS)[1:]:
        clean, noisy = lists(folder / f"test-{condition}" / "clean"), lists(folder / f"test-{condition}" / "noisy")
        assert list(clean) == list(noisy)
        for name, path in clean.items():
            quiet, loud = audio(path), audio(noisy[name])
            assert float(snr(quiet, loud)) == pytest.approx(float(condition), abs=0.1)
            noises.setdefault(name, []).append((loud - quiet) / (loud - quiet).norm())
    for loud, _, quiet in noises.values():
        assert float(loud @ quiet) == pytest.approx(1, abs=1e-2)
    clean = lists(folder / "test-clean" / "clean")
    for name, path in lists(folder / "test-clean" / "noisy").items():
        assert torch.equal(audio(path), audio(clean[name]))


def test_mixtures_are_the_sum_of_two_speakers(corpora):
    folder = corpora("ss", limit=6)
    for split in ("train", "dev", "test-clean"):
        paths = [lists(folder / split / kind) for kind in ("mix_clean", "s1", "s2")]
        for name in paths[0]:
            mixture, first, second = (audio(of_kind[name]) for of_kind in paths)
            assert float((mixture - first - second).abs().max()) < 1e-3
            assert abs(float(10 * torch.log10(first.square().mean() / second.square().mean()))) < 2.6


@pytest.mark.filterwarnings("ignore")
def test_keywords_are_split_by_speech_commands_rule(tmp_path):
    folder = build_corpus("ks", tmp_path)
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
        words = {path.name for path in (folder / f"test-{condition}").iterdir()}
        assert words == {"alexa", "smart mirror", "_unknown_", "_silence_"}


def test_commands_have_a_value_in_each_column(tmp_path):
    folder = build_corpus("ic", tmp_path)
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


def test_the_same_settings_give_the_same_bytes_and_are_not_built_again(tmp_path):
    first, second = (build_corpus("ss", tmp_path / name, limit=4) for name in "ab")
    for path in first.rglob("*.wav"):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()
    written = (first / "corpus.json").stat().st_mtime_ns
    assert build_corpus("ss", tmp_path / "a", limit=4) == first
    assert (first / "corpus.json").stat().st_mtime_ns == written
    with pytest.raises(OutputError, match="other settings; remove it or give --overwrite"):
        build_corpus("ss", tmp_path / "a", limit=5)
    assert build_corpus("ss", tmp_path / "a", limit=4, overwrite=True) == first
    assert (first / "corpus.json").stat().st_mtime_ns == written
    build_corpus("ss", tmp_path / "a", limit=5, overwrite=True)
    assert (first / "corpus.json").stat().st_mtime_ns != written
    with pytest.raises(UsageError, match="no corpus for 'sd'"):
        build_corpus("sd", tmp_path)


@pytest.mark.parametrize("task", ["asr", "sid", "ks", "ic", "ss"])
def test_training_audio_may_be_noisy(corpora, task):
    clean, noisy = (corpora(task, limit=20, training=kind) for kind in ("clean", "noisy"))
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
def test_the_audio_that_upstreams_are_timed_on_is_the_test_sets(corpora, task):
    folder = corpora(task, limit=20)
    clean, noisy = (timing.read_recordings(task, folder, condition) for condition in ("clean", "0"))
    assert 1 <= len(clean) == len(noisy) <= 8
    assert [len(one) for one in clean] == [len(other) for other in noisy]
    assert not all(torch.equal(one, other) for one, other in zip(clean, noisy, strict=True))


def test_a_build_that_is_cut_off_leaves_no_corpus(tmp_path, monkeypatch):
    def cut_off(draft):
        (draft.out / "half").mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(BUILDERS, "ic", cut_off)
        with pytest.raises(KeyboardInterrupt):
            build_corpus("ic", tmp_path)
    assert not (tmp_path / "ic").exists()
    assert not (build_corpus("ic", tmp_path) / "half").exists()
