import json
import os
import re
import shutil
from pathlib import Path

import pytest
import soundfile
import torch

from daisy import audio
from daisy.errors import AudioError, OutputError, UsageError
from daisy.extraction import rebuild_index
from daisy.extraction.run_journals import UNIT_FILES
from daisy.units import UnitEncoder, UnitExtractor, rebuild_units, repeat
from daisy.units.files import FORMS
from tests.conftest import spread_policy, tiny_model
from tests.extraction.conftest import extract

NAMES = [f"{index}.wav" for index in range(5)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    generator = torch.Generator().manual_seed(0)
    for index, name in enumerate(NAMES):
        wave = 0.1 * torch.randn(4000 + 2500 * index, generator=generator)
        soundfile.write(folder / name, wave.numpy(), 16000, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def units():
    return UnitEncoder(tiny_model(num_units=44), "fixed", layer=2)


def run(units, place, out, recordings=None, **options):
    run_options = {name: options.pop(name) for name in ("shard", "overwrite") if name in options}
    extractor = UnitExtractor(units, out, checkpoint="0" * 64, batch_sec=0.1, **options)
    return extractor.run(audio.find([place]) if recordings is None else recordings, **run_options)


def read_jsonl(out):
    return [json.loads(line) for line in (out / "units.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def expected(units, place):
    sequences = {name: units(audio.read(place / name))[0].units for name in NAMES}
    assert len({unit for sequence in sequences.values() for unit in sequence}) > 5
    return sequences


def test_all_forms_say_the_same(units, place, expected, tmp_path):
    run(units, place, tmp_path, forms=["jsonl", "km", "text"])
    lines = read_jsonl(tmp_path)
    assert [line["file"] for line in lines] == [str(place / name) for name in NAMES]
    assert [line["units"] for line in lines] == list(expected.values())
    assert [line["exit_layer"] for line in lines] == [2] * 5
    assert all("durations" not in line for line in lines)
    recordings = audio.read_manifest(tmp_path / "units.tsv")
    assert [recording.path for recording in recordings] == [place / name for name in NAMES]
    lengths = [int(line.split("\t")[1]) for line in (tmp_path / "units.tsv").read_text().splitlines()[1:]]
    assert lengths == [4000 + 2500 * index for index in range(5)]
    of_km = [list(map(int, line.split())) for line in (tmp_path / "units.km").read_text().splitlines()]
    assert of_km == list(expected.values())
    assert (tmp_path / "dict.km.txt").read_text() == "".join(f"{unit} 1\n" for unit in range(units.num_units))
    texts = [line.split("|") for line in (tmp_path / "units.txt").read_text().splitlines()]
    assert {name: list(map(int, line.split())) for name, line in texts} == {
        str(place / name): of_name for name, of_name in expected.items()
    }
    assert not (tmp_path / "units.durations").exists()


def test_repetitions_and_durations_bring_the_frames_back(units, place, expected, tmp_path):
    run(units, place, tmp_path, forms=["jsonl", "km"], deduplicated=True)
    for line, frames in zip(read_jsonl(tmp_path), expected.values(), strict=True):
        assert len(line["units"]) < len(frames)
        assert repeat(line["units"], line["durations"]) == frames
    rows = [(tmp_path / name).read_text().splitlines() for name in ("units.km", "units.durations")]
    numbers = ([list(map(int, line.split())) for line in lines] for lines in rows)
    assert [repeat(*pair) for pair in zip(*numbers, strict=True)] == list(expected.values())


def test_parquet_says_the_same(units, place, expected, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    run(units, place, tmp_path, forms=["parquet"], deduplicated=True)
    table = parquet.read_table(tmp_path / "units.parquet").to_pydict()
    assert table["file"] == [str(place / name) for name in NAMES]
    assert [repeat(*pair) for pair in zip(table["units"], table["durations"], strict=True)] == list(expected.values())
    assert table["exit_layer"] == [2] * 5


def test_a_stopped_run_goes_on_and_other_forms_cost_nothing(units, place, expected, tmp_path):
    recordings = audio.find([place])
    run(units, place, tmp_path, recordings[:2])
    begun = (tmp_path / "journal.jsonl").read_text()
    report = run(units, place, tmp_path)
    assert report.num_resumed == 2
    assert [row.list_units() for row in report.rows] == list(expected.values())
    journal = (tmp_path / "journal.jsonl").read_text()
    assert journal.startswith(begun)
    report = run(units, place, tmp_path, forms=["text"], deduplicated=True)
    assert report.num_resumed == 5
    assert (tmp_path / "journal.jsonl").read_text() == journal
    rebuilt = rebuild_units(tmp_path)  # in the forms of the last run
    assert [row.list_units() for row in rebuilt.rows] == list(expected.values())
    assert json.loads((tmp_path / "units.json").read_text())["forms"] == ["text"]
    assert (tmp_path / "units.durations").exists()
    run(units, place, tmp_path, forms=["text"])
    assert not (tmp_path / "units.durations").exists()  # of units that are no longer there


def test_shards_write_one_file(units, place, expected, tmp_path):
    for index in (1, 0, 2):
        run(units, place, tmp_path, shard=(index, 3))
    assert [line["units"] for line in read_jsonl(tmp_path)] == list(expected.values())


def test_bad_recordings_are_reported_and_others_go_on(units, place, expected, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "broken.wav").write_bytes(b"RIFF junk")
    soundfile.write(tmp_path / "bad" / "short.wav", torch.zeros(300).numpy(), 16000)
    report = run(units, place, tmp_path / "out", audio.find([place, tmp_path / "bad"]))
    assert len(report.rows) == 5
    assert sorted(path.rpartition("/")[2] for path in report.failed) == ["broken.wav", "short.wav"]
    failed = json.loads((tmp_path / "out" / "units.json").read_text())["failed"]
    assert [failure["reason"].split(":")[0] for failure in failed][1] == "too short"
    assert len(read_jsonl(tmp_path / "out")) == 5


def test_windows_give_a_unit_for_each_frame(units, place, expected, tmp_path):
    report = run(units, place, tmp_path, window_sec=0.5, context_sec=0.2)
    lengths = [len(row.list_units()) for row in report.rows]
    assert lengths == [len(frames) for frames in expected.values()]
    assert [bool(row.window_exits) for row in report.rows] == [False, False, True, True, True]
    same = [
        one == other
        for row, frames in zip(report.rows, expected.values(), strict=True)
        for one, other in zip(row.list_units(), frames, strict=True)
    ]
    assert sum(same) / len(same) > 0.6  # attention sees less, and noise is no speech


def test_other_settings_are_refused(units, place, tmp_path):
    run(units, place, tmp_path / "heads")
    centres = torch.randn(6, 32)
    kmeans = UnitEncoder(tiny_model(), kmeans=centres, layer=2)
    with pytest.raises(OutputError, match="another num_units, source"):
        run(kmeans, place, tmp_path / "heads")
    assert len(run(kmeans, place, tmp_path / "heads", overwrite=True).rows) == 5
    other = UnitEncoder(tiny_model(), kmeans=centres + 1, layer=2)
    with pytest.raises(OutputError, match="another source"):
        run(other, place, tmp_path / "heads")
    with pytest.raises(OutputError, match="holds a run with another"):
        extract(place, tmp_path / "heads")
    extract(place, tmp_path / "features")
    with pytest.raises(OutputError, match="holds a run with another"):
        run(units, place, tmp_path / "features")
    with pytest.raises(UsageError, match="holds no journal of units"):
        rebuild_units(tmp_path / "features")
    with pytest.raises(UsageError, match="found 'units'"):
        rebuild_index(tmp_path / "heads")


def test_impossible_forms_are_refused_before_the_run(units, tmp_path):
    for options, reason in [
        (dict(forms=["csv"]), "unknown form 'csv'"),
        (dict(forms=[]), "no form is asked for"),
        (dict(forms=["km"], channel=0), "do not tell channels"),
    ]:
        with pytest.raises(UsageError, match=reason):
            UnitExtractor(units, tmp_path / "out", checkpoint="", **options)
    assert not (tmp_path / "out").exists()


def test_channels_are_recordings(units, tmp_path):
    wave = 0.1 * torch.randn(8000, 2, generator=torch.Generator().manual_seed(1))
    soundfile.write(tmp_path / "call.wav", wave.numpy(), 16000, subtype="FLOAT")
    run(units, tmp_path, tmp_path / "out", channel="all")
    lines = read_jsonl(tmp_path / "out")
    assert [line["channel"] for line in lines] == [0, 1]
    assert [line["units"] for line in lines] == [sequence.units for sequence in units(list(wave.T.contiguous()))]


def test_exits_of_each_recording_are_kept(place, tmp_path):
    model = tiny_model()
    waveforms = [audio.read(place / name) for name in NAMES]
    policy = spread_policy(model, waveforms)
    report = run(UnitEncoder(model, policy), place, tmp_path)
    exits = [sequence.exit_layer for sequence in UnitEncoder(model, policy)(waveforms)]
    assert [row.exit_layer for row in report.rows] == exits
    assert len(set(exits)) > 1
    assert all(len(row.predicted_loss) == row.exit_layer for row in report.rows)


def test_whoever_begins_again_takes_away_all_that_was_made_of_units(units, place, tmp_path):
    pytest.importorskip("pyarrow.parquet")
    run(units, place, tmp_path, forms=list(FORMS), deduplicated=True)
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(("units", "dict"))} == set(UNIT_FILES)
    run(units, place, tmp_path, overwrite=True)
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(("units", "dict"))} == {
        "units.json", "units.jsonl",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("form", "name", "reason"),
    [("km", "a\tb.wav", "a tab in the name"), ("text", "a|b.wav", "| in the name: a line of units.txt")],
)
def test_a_name_that_a_form_cannot_hold_fails_alone(form, name, reason, units, place, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for copied in ("plain.wav", name):
        shutil.copy(place / NAMES[0], folder / copied)
    report = run(units, folder, tmp_path / "out", forms=[form])
    assert [Path(row.path).name for row in report.rows] == ["plain.wav"]
    ((label, error),) = report.failed.items()
    assert label.endswith(name)
    assert reason in error.message
    assert len((tmp_path / "out" / f"units.{form.replace('text', 'txt')}").read_text().splitlines()) == 1
    run(units, folder, tmp_path / "all", forms=["jsonl"])
    with pytest.raises(AudioError, match=re.escape(reason)):  # of a journal that holds it already
        rebuild_units(tmp_path / "all", [form])


def test_parquet_takes_names_that_are_no_utf8(units, place, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(place / NAMES[0], os.fsencode(folder) + b"/caf\xe9.wav")
    run(units, folder, tmp_path / "out", forms=["parquet"])
    assert parquet.read_table(tmp_path / "out" / "units.parquet")["file"].to_pylist() == [f"{folder}/caf\ufffd.wav"]
