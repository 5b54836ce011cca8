"""daisy labels: sample rates of the checkpoint, unusable recordings, changed manifests, centres from other runs."""

import dataclasses
import json

import numpy
import pytest
import soundfile

import daisy
from tests.audio.test_archives import LENGTHS, archive  # noqa: F401  a fixture
from tests.cli.running import run, run_python
from tests.conftest import POST_NORM, tiny_model


@pytest.fixture
def place(tmp_path):
    """Eight recordings of 0.5 to 1.2 s and their manifest."""
    generator = numpy.random.default_rng(0)
    (tmp_path / "wav").mkdir()
    lines = [str(tmp_path / "wav")]
    for index in range(8):
        samples = 0.1 * generator.standard_normal(8000 + 1600 * index)
        soundfile.write(tmp_path / "wav" / f"{index}.wav", samples, 16000)
        lines.append(f"{index}.wav\t{len(samples)}")
    (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path


def label(place, *more, out="units"):
    return run("labels", place / "train.tsv", "-o", place / out, "--clusters", 4, "--fit-frames", 60, *more)


def units(place, out="units"):
    return [line.split() for line in (place / out / "train.km").read_text().splitlines()]


def take_out(place, *names):
    """Take the lines of recordings out of the manifest."""
    lines = (place / "train.tsv").read_text().splitlines()
    (place / "train.tsv").write_text("\n".join([line for line in lines if line.partition("\t")[0] not in names]) + "\n")


def listed(path):
    return [line.partition("\t")[0] for line in path.read_text().splitlines()[1:]]


@pytest.mark.parametrize(
    ("config", "per_sec", "notes"),
    [
        (POST_NORM, 50, ""),
        (
            dataclasses.replace(POST_NORM, conv_layers=(*POST_NORM.conv_layers, (16, 2, 2))),
            25,
            "note: tell fairseq task.label_rate=25\n",
        ),
        (
            dataclasses.replace(POST_NORM, sample_rate=8000),
            25,
            "note: tell fairseq task.label_rate=25\nnote: tell fairseq task.sample_rate=8000\n",
        ),
        (dataclasses.replace(POST_NORM, sample_rate=22050), 68.90625, None),
    ],
    ids=["50 Hz", "25 Hz", "8 kHz", "22.05 kHz"],
)
def test_units_come_at_the_rate_of_the_checkpoint(place, config, per_sec, notes):
    daisy.save(tiny_model(config), place / "model.safetensors")
    known = ("-c", place / "model.safetensors", "--layer", 2)
    done = label(place, *known)
    assert done.returncode == 0, done.stderr
    assert f"units of 8 recordings at {per_sec} a second" in done.stdout
    assert done.stderr == notes if notes is not None else "task.label_rate=68.90625" in done.stderr
    for index, line in enumerate(units(place)):
        assert abs(len(line) - per_sec * (0.5 + 0.1 * index)) <= 2
    assert json.loads((place / "units" / "labels.json").read_text())["label_rate"] == per_sec
    assert label(place, *known, "--label-rate", per_sec).returncode == 0
    refused = label(place, *known, "--label-rate", 2 * per_sec, out="other")
    assert refused.returncode == 2
    assert f"label rate {2 * per_sec:g}: this teacher's frames come at {per_sec} a second" in refused.stderr


def test_bad_recordings_are_skipped_listed_and_left_out_of_a_manifest_beside(place):
    (place / "wav" / "2.wav").write_text("no audio")
    soundfile.write(place / "wav" / "5.wav", numpy.zeros(100), 16000)
    run("labels", place / "train.tsv", "-o", place / "units", "--clusters", 4)
    done = label(place)
    assert done.returncode == 2  # of other fit_frames
    done = run("labels", place / "train.tsv", "-o", place / "units", "--clusters", 4)
    assert done.returncode == 1
    assert f"failed: {place}/wav/2.wav: not readable as audio (Format not recognised)\n" in done.stderr
    assert (
        f"failed: {place}/wav/5.wav: too short: 100 samples at 16000 Hz, one frame needs 400 (25 ms)\n" in done.stderr
    )
    assert done.stderr.endswith("2 of 8 recordings failed\n")
    assert f"train on them, with task.data={place / 'units'}" in done.stdout
    assert listed(place / "units" / "train.tsv") == [f"{i}.wav" for i in (0, 1, 3, 4, 6, 7)]
    assert [len(line) for line in units(place)] == [(8000 + 1600 * i - 400) // 320 + 1 for i in (0, 1, 3, 4, 6, 7)]
    before = units(place)
    take_out(place, "2.wav", "5.wav")
    done = run("labels", place / "train.tsv", "-o", place / "units", "--clusters", 4)
    assert (done.returncode, done.stderr) == (0, "")
    assert units(place) == before


def test_strict_stops_at_the_first_and_what_was_done_is_kept(place):
    (place / "wav" / "6.wav").write_text("no audio")
    assert label(place).returncode == 1  # k-means is fitted on others
    centres = (place / "units" / "kmeans.npy").read_bytes()
    for path in (place / "units").glob("train.*"):
        path.unlink()
    done = label(place, "--strict")
    assert done.returncode == 2
    assert done.stderr == f"daisy: {place}/wav/6.wav: not readable as audio (Format not recognised)\n"
    assert (place / "units" / "train.km.part").read_bytes().count(b"\n") == 6
    take_out(place, "6.wav")
    done = label(place, "--strict")
    assert done.returncode == 0, done.stderr
    assert len(units(place)) == 7
    assert (place / "units" / "kmeans.npy").read_bytes() == centres


def test_kmeans_stays_when_a_recording_that_it_was_fitted_on_goes(place):
    assert label(place).returncode == 0
    before, centres = units(place), (place / "units" / "kmeans.npy").read_bytes()
    drawn = numpy.random.default_rng(0).permutation(8).tolist()[:2]  # 60 frames are two recordings
    gone = f"{drawn[0]}.wav"
    take_out(place, gone)
    done = label(place)
    assert done.returncode == 0
    assert "note: k-means stays as it was fitted, on 2 recordings, 1 of which" in done.stderr
    assert (place / "units" / "kmeans.npy").read_bytes() == centres
    assert units(place) == [line for index, line in enumerate(before) if index != drawn[0]]


def test_beside_its_manifest_a_part_of_the_units_is_not_written(place):
    """fairseq would read the whole manifest with it."""
    (place / "wav" / "2.wav").write_text("no audio")
    done = label(place, out=".")
    assert done.returncode == 1
    assert f"{place}/train.km: not written: fairseq would read {place}/train.tsv with it" in done.stderr
    assert not (place / "train.km").exists()
    take_out(place, "2.wav")
    assert label(place, out=".").returncode == 0
    assert len(units(place, ".")) == 7


def test_a_manifest_of_somebody_elses_is_not_written_over(place):
    (place / "wav" / "2.wav").write_text("no audio")
    (place / "units").mkdir()
    (place / "units" / "train.tsv").write_text("theirs")
    done = label(place)
    assert done.returncode == 1
    assert f"not written: fairseq would read {place / 'units' / 'train.tsv'} with it" in done.stderr
    assert (place / "units" / "train.tsv").read_text() == "theirs"
    (place / "units" / "train.tsv").unlink()
    assert label(place).returncode == 1
    assert len(listed(place / "units" / "train.tsv")) == len(units(place)) == 7
    soundfile.write(place / "wav" / "2.wav", numpy.random.default_rng(1).standard_normal(11200), 16000)
    done = label(place)  # ours: it follows
    assert (done.returncode, done.stderr) == (0, "")
    assert len(listed(place / "units" / "train.tsv")) == len(units(place)) == 8


def test_nothing_usable_is_exit_status_2(place):
    for path in (place / "wav").iterdir():
        path.write_text("no audio")
    done = label(place)
    assert done.returncode == 2
    assert "none of the 8 recordings of the first manifest can be used" in done.stderr


def test_published_centres_must_be_as_many_as_the_dictionarys_units(place):
    """Or units of the label files were none of the dictionary."""
    (place / "units").mkdir()
    centres = numpy.random.default_rng(1).standard_normal((50, 39))
    numpy.save(place / "units" / "kmeans.npy", centres)
    arguments = ("labels", place / "train.tsv", "-o", place / "units")
    refused = run(*arguments, "--clusters", 5)
    assert refused.returncode == 2
    assert "kmeans.npy: holds 50 centres, and 5 units are asked for: ask for 50" in refused.stderr
    assert sorted(path.name for path in (place / "units").iterdir()) == ["kmeans.npy"]
    assert run(*arguments, "--clusters", 50).returncode == 0
    assert (place / "units" / "dict.km.txt").read_text().count("\n") == 50
    numpy.save(place / "units" / "kmeans.npy", centres + 1)
    refused = run(*arguments, "--clusters", 50)
    assert refused.returncode == 2
    assert "holds units made with another kmeans.npy" in refused.stderr


def test_units_are_made_of_recordings_in_archives(archive, tmp_path):  # noqa: F811
    done = run("labels", archive.with_name("train.tsv"), "-o", tmp_path / "units", "--clusters", 4)
    assert done.returncode == 0, done.stderr
    assert [len(line) for line in units(tmp_path)] == [(length - 400) // 320 + 1 for length in LENGTHS.values()]


def test_two_processes_do_not_write_into_one_folder(place):
    """The second, in the middle of the first: it is refused, and nothing of the first's is changed."""
    from daisy.extraction import labelling

    refused = []

    class Watched(labelling.UnitFile):
        def finish(self):
            before = self.part_path.read_bytes()
            lock = place / "units" / "labels.json.lock"
            code = "import sys; from daisy.cli import main; sys.argv[0] = 'daisy'; main()"
            call = ("labels", place / "train.tsv", "-o", place / "units", "--clusters", 4, "--fit-frames", 60)
            refused.append((run_python(code, *call), json.loads(lock.read_text())))
            assert self.part_path.read_bytes() == before
            super().finish()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labelling, "UnitFile", Watched)
        done = label(place)
    assert done.returncode == 0, done.stderr
    ((second, holder),) = refused
    assert second.returncode == 2
    assert second.stderr.decode() == (
        f"daisy: {place}/units: is being written by process {holder['pid']} on {holder['host']}, "
        f"since {holder['since']}; wait for it, or use another --out\n"
    )
    assert len(units(place)) == 8
    assert not (place / "units" / "labels.json.lock").exists()


def write_corpus(place, name, repeats=1):
    """Four recordings of another corpus, each listed some times."""
    (place / name).mkdir()
    generator = numpy.random.default_rng(len(name))
    lines = [str(place / name)]
    for index in range(4):
        soundfile.write(place / name / f"{index}.wav", 0.1 * generator.standard_normal(9000 + 1000 * index), 16000)
        lines += [f"{index}.wav\t{9000 + 1000 * index}"] * repeats
    (place / name / "train.tsv").write_text("\n".join(lines) + "\n")
    return place / name / "train.tsv"


@pytest.mark.parametrize("stopped", [False, True])
def test_units_of_another_corpus_are_not_replaced_with_published_centres(place, stopped):
    (place / "units").mkdir()
    numpy.save(place / "units" / "kmeans.npy", numpy.random.default_rng(1).standard_normal((4, 39)))
    manifest = write_corpus(place, "other")
    assert label(place).returncode == 0
    if stopped:
        keys = (place / "units" / "train.km.keys").read_text().split()
        km = (place / "units" / "train.km").read_text().splitlines()
        lines = [f"@{key} {line}\n" for key, line in zip(keys, km, strict=True)]
        (place / "units" / "train.km.part").write_text("".join(lines[:3]))
        (place / "units" / "train.km").unlink()
        (place / "units" / "train.km.keys").unlink()
    before = {path.name: path.read_bytes() for path in (place / "units").iterdir()}
    done = run("labels", manifest, "-o", place / "units", "--clusters", 4, "--fit-frames", 60)
    assert done.returncode == 2
    assert done.stderr == (
        f"daisy: {place}/units/train.km: holds units of other recordings: {manifest} lists none of them; "
        "use another --out\n"
    )
    assert {path.name: path.read_bytes() for path in (place / "units").iterdir()} == before


def test_units_of_another_corpus_are_not_replaced_where_recordings_are_listed_repeatedly(place):
    """As balanced manifests have it: k-means is then fitted on some of them twice."""
    call = ("-o", place / "units", "--clusters", 4)
    assert run("labels", write_corpus(place, "balanced", repeats=2), *call).returncode == 0
    assert (place / "units" / "kmeans.keys").read_text().count("\n") == 8
    for name in ("train.km", "train.km.keys"):
        (place / "units" / name).unlink()  # what k-means was fitted on is what tells
    done = run("labels", write_corpus(place, "other"), *call)
    assert done.returncode == 2
    assert "other/train.tsv lists none that k-means was fitted on; use another --out\n" in done.stderr
    lines = (place / "balanced" / "train.tsv").read_text().splitlines()
    (place / "balanced" / "train.tsv").write_text("\n".join(lines[:-2]) + "\n")
    done = run("labels", place / "balanced" / "train.tsv", *call)
    assert (done.returncode, len(units(place))) == (0, 6)
    assert "note: k-means stays as it was fitted, on 4 recordings, 1 of which" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.json", b"[]", "labels.json: damaged: it does not tell how units are made"),
        ("labels.json", b"\xff", "labels.json: cannot be read ("),
        ("kmeans.keys", b"\xff" * 24, "kmeans.keys: damaged: not a line of 24 digits for each recording"),
        ("train.km.keys", "é".encode() * 12, "train.km.keys: damaged: not a line of 24 digits for each recording"),
    ],
)
def test_damaged_notes_are_one_line(place, name, content, message):
    assert label(place).returncode == 0
    (place / "units" / name).write_bytes(content)
    done = label(place)
    assert done.returncode == 2
    assert done.stderr.startswith(f"daisy: {place}/units/{message}")
    assert done.stderr.count("\n") == 1
