"""Files left by interrupted runs on lhotse's cuts, and requests refused so that nothing is lost."""

import gc
import gzip
import tracemalloc

import numpy
import pytest
import soundfile

import daisy
from daisy.errors import OutputError
from tests.conftest import tiny_model

lhotse = pytest.importorskip("lhotse", reason="needs lhotse (the extra lhotse)")

from lhotse import CutSet, Recording  # noqa: E402

from daisy.integrations.lhotse import DaisyFeatures, DaisyFeaturesConfig, add_exits, extend_shar  # noqa: E402
from daisy.integrations.lhotse.resuming import hold_lock, mend_manifest  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def collect():
    """lhotse leaves open files to the collector: it is done here, where the warning is ignored."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Four recordings and a checkpoint."""
    place, random = tmp_path_factory.mktemp("resuming"), numpy.random.default_rng(1)
    for index in range(4):
        soundfile.write(place / f"{index}.wav", 0.1 * random.standard_normal(4000), 16000)
    daisy.save(tiny_model(), place / "tiny.safetensors")
    return place


@pytest.fixture
def cuts(place):
    return CutSet.from_cuts(Recording.from_file(place / f"{index}.wav").to_cut() for index in range(4))


@pytest.fixture(scope="module")
def first(place):
    """Leaves at layer 1."""
    return make(place, 1)


@pytest.fixture(scope="module")
def second(place):
    return make(place, 2)


def make(place, layer):
    return DaisyFeatures(DaisyFeaturesConfig(checkpoint=str(place / "tiny.safetensors"), layer=layer))


class StoppedError(Exception):
    pass


def stop_at(patch, extractor, number):
    """Let an extractor's call of a number stop the run."""
    encode, calls = extractor.encode, iter(range(1, 99))

    def stop(*arguments, **options):
        if next(calls) == number:
            raise StoppedError
        return encode(*arguments, **options)

    patch.setattr(extractor, "encode", stop)


def test_a_manifest_of_somebody_else_is_not_taken_for_finished(cuts, first, tmp_path):
    path = tmp_path / "cuts.jsonl.gz"
    cuts.to_file(path)
    before = path.read_bytes()
    with pytest.raises(OutputError, match=r"cuts\.jsonl\.gz: was not begun by add_exits; use another place"):
        add_exits(CutSet.from_file(path), first, manifest_path=path)
    assert path.read_bytes() == before
    made = add_exits(CutSet.from_file(path), first, manifest_path=tmp_path / "new" / "exits.jsonl")
    assert [cut.exit_layer for cut in made] == [1, 1, 1, 1]


def test_what_is_read_is_not_overwritten(cuts, first, tmp_path):
    path = tmp_path / "cuts.jsonl"
    cuts.to_file(path)
    before = path.read_bytes()
    lazy = CutSet.from_file(path)
    others = CutSet.from_cuts([cuts[0].with_id("other")])
    for reading in (lazy, lazy.resample(8000), CutSet.mux(lazy, others), lazy + others):
        with pytest.raises(OutputError, match=r"cuts\.jsonl: the cuts are read from it; use another place$"):
            add_exits(reading, first, manifest_path=path, overwrite=True)
        assert path.read_bytes() == before
    made = add_exits(lazy.to_eager(), first, manifest_path=path, overwrite=True)
    assert [cut.exit_layer for cut in made] == [1, 1, 1, 1]


def test_a_stopped_overwriting_leaves_no_cuts_of_other_settings(cuts, first, second, tmp_path):
    path = tmp_path / "cuts.jsonl"
    add_exits(cuts, first, manifest_path=path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CutSet, "open_writer", lambda *arguments, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            add_exits(cuts, second, manifest_path=path, overwrite=True)
    assert {cut.exit_layer for cut in add_exits(cuts, second, manifest_path=path)} == {2}


@pytest.mark.parametrize(("ending", "open_file"), [(".jsonl", open), (".jsonl.gz", gzip.open)])
def test_a_manifest_is_mended_without_holding_it(tmp_path, ending, open_file):
    path, lines = tmp_path / f"cuts{ending}", [f"{number:0100}" for number in range(30_000)]
    with open_file(path, "wt") as stream:
        stream.write("\n".join(lines) + "\n")
    whole = path.read_bytes()
    for size in (len(whole), len(whole) - 30):
        path.write_bytes(whole[:size])
        tracemalloc.start()
        mend_manifest(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 5e5  # of 3 MB
        if size == len(whole):
            assert path.read_bytes() == whole
    with open_file(path, "rt") as stream:
        left = stream.read()
    assert left.endswith("\n")
    assert left.splitlines() == lines[: left.count("\n")]
    assert 27_000 < left.count("\n") < 30_000


def test_one_process_writes(cuts, first, tmp_path):
    path, folder = tmp_path / "cuts.jsonl", tmp_path / "shar"
    folder.mkdir()
    cuts.to_shar(folder, {"recording": "wav"}, shard_size=1)
    with hold_lock(path), pytest.raises(OutputError, match=r"cuts\.jsonl: is being written by process \d+ on .*; wait"):
        add_exits(cuts, first, manifest_path=path)
    with hold_lock(folder), pytest.raises(OutputError, match=r"shar: is being written by process"):
        extend_shar(folder, first)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["shar"]


def test_a_shar_folder_can_be_read_while_it_is_extended(cuts, first, second, tmp_path):
    folder = tmp_path / "shar"
    folder.mkdir()
    cuts.to_shar(folder, {"recording": "wav"}, shard_size=1)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, first, 3)
        with pytest.raises(StoppedError):
            extend_shar(folder, first, ["exit_layer"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert len(list(CutSet.from_shar(in_dir=folder))) == 4
    with pytest.raises(OutputError, match="shar: was begun with another layer, policy"):
        extend_shar(folder, second, ["exit_layer"])
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, first, 3)  # two of four are left to do
        assert {cut.exit_layer for cut in extend_shar(folder, first, ["exit_layer"])} == {1}
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shar", "shar.daisy.json"]


def test_what_a_stopped_run_collected_goes_with_its_settings(cuts, first, second, tmp_path):
    folder = tmp_path / "shar"
    folder.mkdir()
    cuts.to_shar(folder, {"recording": "wav"}, shard_size=1)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, first, 3)
        with pytest.raises(StoppedError):
            extend_shar(folder, first, ["exit_layer"])
    extend_shar(folder, second, ["features"], overwrite=True)
    assert {cut.exit_layer for cut in extend_shar(folder, second, ["exit_layer"])} == {2}


def test_fields_of_somebody_else_stay_in_a_shar_folder(cuts, first, second, tmp_path):
    folder = tmp_path / "shar"
    folder.mkdir()
    mels = cuts.compute_and_store_features(lhotse.Fbank(lhotse.FbankConfig(num_filters=40)), tmp_path / "mels")
    mels.to_shar(folder, {"recording": "wav", "features": "numpy"}, shard_size=1)
    with pytest.raises(OutputError, match="shar: has features that extend_shar did not write; leave it out"):
        extend_shar(folder, first)
    for extractor in (first, second):
        made = list(extend_shar(folder, extractor, ["exit_layer"], overwrite=True))
        assert [cut.features.type for cut in made] == ["kaldi-fbank"] * 4
    assert [cut.features.type for cut in extend_shar(folder, second, overwrite=True)] == ["daisy"] * 4
