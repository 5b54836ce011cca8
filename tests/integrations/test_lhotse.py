"""lhotse's cuts through daisy: features equal to daisy's own, exits as fields, and new features in Shar folders."""

import gc
import json
import pickle

import numpy
import pytest
import soundfile
import torch

import daisy
from daisy import AudioError, UsageError
from daisy.errors import OutputError
from daisy.units import UnitEncoder
from tests.conftest import spread_policy, tiny_model

lhotse = pytest.importorskip("lhotse", reason="needs lhotse (the extra lhotse)")

from lhotse import CutSet, FeatureExtractor, NumpyFilesWriter, validate  # noqa: E402
from lhotse.features.io import MemoryRawWriter  # noqa: E402
from lhotse.utils import compute_num_frames  # noqa: E402

from daisy.integrations.lhotse import (  # noqa: E402
    DaisyFeatures,
    DaisyFeaturesConfig,
    add_exits,
    extend_shar,
    read_manifest,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
LENGTHS = [3840, 3919, 3920, 3999, 4000, 4159, 4160, 16000, 23999]
"""Around those at which HuBERT and lhotse count a frame more: 320 k + 80 and 320 k + 160, here 3920 and 4000."""


@pytest.fixture(autouse=True)
def collect():
    """lhotse leaves open files to the collector: it is done here, where the warning is ignored."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Recordings, their manifest, and a checkpoint with a policy by which they leave at several layers."""
    place = tmp_path_factory.mktemp("lhotse")
    generator = torch.Generator().manual_seed(1)
    lines = [str(place)]
    waveforms = []
    (place / "sub").mkdir()
    for index, length in enumerate(LENGTHS):
        wave = 0.1 * torch.randn(length, generator=generator) * (1 + torch.sin(torch.arange(length) / 900))
        name = f"sub/{index}.wav" if index % 2 else f"{index}.flac"
        kind = "FLOAT" if index % 2 else "PCM_16"
        soundfile.write(place / name, wave.numpy(), 16000, subtype=kind)
        waveforms.append(daisy.audio.read(place / name))
        lines.append(f"{name}\t{length}")
    (place / "all.tsv").write_text("\n".join(lines) + "\n")
    model = tiny_model()
    model.policies = {"entropy": {"threshold": spread_policy(model, waveforms).threshold}}
    daisy.save(model, place / "tiny.safetensors")
    return place


@pytest.fixture(scope="module")
def cuts(place):
    return read_manifest(place / "all.tsv")


@pytest.fixture(scope="module")
def extractor(place):
    return make(place)


@pytest.fixture(scope="module")
def expected(place, cuts, extractor):
    """What daisy itself makes of each recording alone, by the cuts' ids."""
    model = daisy.load(place / "tiny.safetensors")
    encoder = model.encoder("entropy", scores=["entropy"])
    units = UnitEncoder(model, "entropy")
    outputs = {}
    for cut in cuts:
        waveform = daisy.audio.read(cut.recording.sources[0].source)
        outputs[cut.id] = (encoder(waveform), units(waveform)[0].units)
    assert len({int(out.exit_layer) for out, _ in outputs.values()}) > 1
    return outputs


def make(place, **settings):
    settings = {"policy": "entropy", **settings}
    return DaisyFeatures(DaisyFeaturesConfig(checkpoint=str(place / "tiny.safetensors"), **settings))


def assert_states(states, cut, expected, layer=-1):
    """daisy's own, but for rounding; then, if lhotse counts a frame more, the last one again."""
    own = expected[cut.id][0].states[0][layer].numpy()
    assert len(states) == compute_num_frames(cut.duration, 0.02, 16000)
    assert len(states) - len(own) in (0, 1)
    numpy.testing.assert_allclose(states[: len(own)], own, rtol=0, atol=1e-5 * own.std())
    numpy.testing.assert_array_equal(
        states[len(own) :], states[len(own) - 1 : len(own)].repeat(len(states) - len(own), 0)
    )


def assert_exits(cut, expected, units=False):
    out, of_units = expected[cut.id]
    assert cut.exit_layer == int(out.exit_layer)
    scores = out.scores["entropy"][0, : cut.exit_layer].tolist()
    assert cut.predicted_loss == pytest.approx(scores, rel=1e-5)
    if units:
        read = cut.load_units().tolist()
        assert len(read) == compute_num_frames(cut.duration, 0.02, 16000)
        assert read == (of_units + of_units[-1:])[: len(read)]


def test_both_counts_of_frames_occur(cuts, expected):
    differences = [compute_num_frames(cut.duration, 0.02, 16000) - int(expected[cut.id][0].num_frames) for cut in cuts]
    assert differences == [1, 1, 0, 0, 1, 1, 1, 1, 1]


def test_a_batch_gives_what_each_gives_alone(cuts, expected, extractor):
    assert extractor.frame_shift == 0.02
    assert extractor.feature_dim(16000) == 32
    samples = [cut.load_audio() for cut in cuts]
    batch = extractor.extract_batch(samples, 16000)
    padded = numpy.zeros((len(samples), 1, max(LENGTHS)), dtype="float32")
    for row, one in enumerate(samples):
        padded[row, :, : one.shape[1]] = one
    by_lengths = extractor.extract_batch(torch.from_numpy(padded), 16000, lengths=torch.tensor(LENGTHS))
    for cut, together, other in zip(cuts, batch, by_lengths, strict=True):
        alone = extractor.extract(cut.load_audio(), 16000)
        assert alone.dtype == together.dtype == numpy.float32
        assert_states(alone, cut, expected)
        assert_states(together, cut, expected)
        assert_states(other.numpy(), cut, expected)
    assert isinstance(extractor.extract(torch.from_numpy(samples[0]), 16000), torch.Tensor)


def test_one_layer(place, cuts):
    extractor = make(place, layer=2, policy="")
    model = daisy.load(place / "tiny.safetensors")
    for cut in cuts:
        out = model.encoder("never")(daisy.audio.read(cut.recording.sources[0].source))
        assert_states(extractor.extract(cut.load_audio(), 16000), cut, {cut.id: (out,)}, layer=2)


def test_it_reads_back(place, cuts, expected, extractor, tmp_path):
    extractor.to_yaml(tmp_path / "daisy.yaml")
    again = FeatureExtractor.from_yaml(tmp_path / "daisy.yaml")
    copy = pickle.loads(pickle.dumps(extractor))
    assert len(pickle.dumps(extractor)) < 1000  # weights are read anew
    for other in (again, copy):
        assert type(other) is DaisyFeatures
        assert other.config == extractor.config
        assert_states(other.extract(cuts[0].load_audio(), 16000), cuts[0], expected)


def test_features_in_batches(cuts, expected, extractor, tmp_path):
    made = cuts.compute_and_store_features_batch(
        extractor,
        tmp_path / "features",
        manifest_path=tmp_path / "cuts.jsonl.gz",
        batch_duration=2.0,
        num_workers=0,
        storage_type=NumpyFilesWriter,
    )
    assert [cut.id for cut in made] == [cut.id for cut in cuts]  # lhotse drops cuts of another length silently
    for cut in CutSet.from_file(tmp_path / "cuts.jsonl.gz"):
        validate(cut, read_data=True)
        assert cut.features.type == "daisy"
        assert_states(cut.load_features(), cut, expected)


def test_features_and_exits_in_one_pass(cuts, expected, extractor, tmp_path):
    path = tmp_path / "cuts.jsonl.gz"

    def run(cuts):
        with NumpyFilesWriter(tmp_path / "features") as features, NumpyFilesWriter(tmp_path / "units") as units:
            return add_exits(cuts, extractor, features=features, units=units, manifest_path=path, batch_sec=1.0)

    assert len(list(run(cuts.subset(first=4)))) == 4
    written = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*/*/*.npy")}
    assert len(written) == 8
    assert [cut.id for cut in run(cuts)] == [cut.id for cut in cuts]
    assert {file: file.stat().st_mtime_ns for file in written} == written  # it went on
    for cut in CutSet.from_file(path):
        validate(cut)
        assert_states(cut.load_features(), cut, expected)
        assert_exits(cut, expected, units=True)
    whole = next(cut for cut in CutSet.from_file(path) if cut.id == "sub-7")
    part = whole.truncate(offset=0.2, duration=0.4)
    assert part.load_units().tolist() == whole.load_units().tolist()[10:30]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_a_killed_run_goes_on(place, cuts, extractor, ending, tmp_path):
    """Its file ends within a line, or within what is compressed; other settings are refused."""
    path = tmp_path / f"cuts{ending}"
    add_exits(cuts.subset(first=5), extractor, manifest_path=path)
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    made = list(add_exits(cuts, extractor, manifest_path=path))
    assert [cut.id for cut in made] == [cut.id for cut in cuts]
    assert [cut.id for cut in CutSet.from_file(path)] == [cut.id for cut in cuts]
    before = path.read_bytes()
    with pytest.raises(OutputError, match=r"was begun with another layer, policy; use another place, or overwrite"):
        add_exits(cuts, make(place, layer=2, policy=""), manifest_path=path)
    assert path.read_bytes() == before
    (tmp_path / f"cuts{ending}.daisy.json").write_text("{")
    with pytest.raises(OutputError, match="damaged; remove it and the run"):
        add_exits(cuts, extractor, manifest_path=path)
    again = list(add_exits(cuts, make(place, layer=2, policy=""), manifest_path=path, overwrite=True))
    assert {cut.exit_layer for cut in again} == {2}


def test_recordings_that_are_listed_again(place, tmp_path):
    listed = (place / "all.tsv").read_text().splitlines()
    (tmp_path / "twice.tsv").write_text("\n".join([listed[0], listed[1], listed[2], listed[1], listed[1]]) + "\n")
    names = [cut.id for cut in read_manifest(tmp_path / "twice.tsv")]
    assert names == [names[0], names[1], f"{names[0]}_2", f"{names[0]}_3"]
    (tmp_path / "two.tsv").write_text(f"{tmp_path}\na.wav\t1000\na.flac\t1000\n")
    for ending in ("wav", "flac"):
        soundfile.write(tmp_path / f"a.{ending}", numpy.zeros(1000), 16000)
    with pytest.raises(UsageError, match=r"two\.tsv: .*a\.wav and .*a\.flac would both be called a$"):
        read_manifest(tmp_path / "two.tsv")


def test_a_cut_that_cannot_be_encoded_is_named(cuts, extractor):
    short = cuts[1].truncate(duration=0.02)
    with pytest.raises(AudioError, match=rf"^{short.id}: a cut is too short: 320 samples, one frame needs 400$"):
        add_exits(CutSet.from_cuts([cuts[0], short]), extractor)


def test_exits_alone(cuts, expected, extractor):
    made = add_exits(cuts, extractor, batch_sec=1.0, num_workers=1)
    for cut, before in zip(made, cuts, strict=True):
        assert_exits(cut, expected)
        assert not cut.has_features
        assert not before.has_custom("exit_layer")
    assert json.loads(json.dumps(made[0].to_dict()))["custom"]["exit_layer"] == made[0].exit_layer


def test_from_manifest_to_shar_and_back(cuts, expected, extractor, tmp_path):
    made = add_exits(cuts, extractor, features=MemoryRawWriter(), units=MemoryRawWriter())
    folder = tmp_path / "shar"
    folder.mkdir()
    made.to_shar(folder, {"recording": "wav", "features": "numpy", "units": "numpy"}, shard_size=4)
    read = list(CutSet.from_shar(in_dir=folder))
    assert [cut.id for cut in read] == [cut.id for cut in cuts]
    for cut, before in zip(read, made, strict=True):
        numpy.testing.assert_array_equal(cut.load_features(), before.load_features())
        assert_states(cut.load_features(), cut, expected)
        assert_exits(cut, expected, units=True)


def test_a_shar_folder_gets_new_fields(place, cuts, expected, extractor, tmp_path):
    folder = tmp_path / "shar"
    folder.mkdir()
    CutSet.from_cuts(cuts).to_shar(folder, {"recording": "flac"}, shard_size=4)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(before) == 6
    fields = ["features", "exit_layer", "predicted_loss", "units"]
    read = list(extend_shar(folder, extractor, fields, batch_sec=1.0))
    added = {path.name for path in folder.iterdir()} - set(before)
    assert {path: (folder / path).read_bytes() for path in before} == before
    assert added == {
        f"{field}.{number:06}.{ending}"
        for field, ending in zip(fields, ["tar", "jsonl.gz", "jsonl.gz", "tar"], strict=True)
        for number in range(3)
    }
    assert [cut.id for cut in read] == [cut.id for cut in cuts]
    model = daisy.load(extractor.config.checkpoint)
    for cut in read:
        own = model.encoder("entropy", scores=["entropy"])(torch.from_numpy(cut.load_audio()))
        units = UnitEncoder(model, "entropy")(torch.from_numpy(cut.load_audio()))[0].units
        heard = {cut.id: (own, units)}  # of FLAC's 16 bits
        validate(cut.features)
        assert_states(cut.load_features(), cut, heard)
        assert_exits(cut, heard, units=True)
    times = {name: (folder / name).stat().st_mtime_ns for name in added}
    (folder / "units.000001.tar").unlink()
    again = list(extend_shar(folder, extractor, fields))
    assert [cut.load_units().tolist() for cut in again] == [cut.load_units().tolist() for cut in read]
    changed = {name for name in added if (folder / name).stat().st_mtime_ns != times[name]}
    assert changed == {name for name in added if ".000001." in name}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shar", "shar.daisy.json"]
    with pytest.raises(OutputError, match=r"shar: was begun with another layer, policy; use another place"):
        extend_shar(folder, make(place, layer=2, policy=""))
    other = make(place, layer=2, policy="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(other, "encode", lambda *arguments, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            extend_shar(folder, other, overwrite=True)
    replaced = list(extend_shar(folder, make(place, layer=2, policy="")))  # it goes on
    assert {cut.exit_layer for cut in replaced} == {2}


def test_a_shar_folder_has_fields_of_one_setting(place, cuts, tmp_path, monkeypatch):
    folder = tmp_path / "shar"
    folder.mkdir()
    CutSet.from_cuts(list(cuts)[:2]).to_shar(folder, {"recording": "wav"}, shard_size=2)
    first, second = make(place, layer=1, policy=""), make(place, layer=2, policy="")
    monkeypatch.chdir(folder)
    extend_shar(".", first)
    assert (tmp_path / "shar.daisy.json").is_file()
    extend_shar(folder, first, ["units"], overwrite=True)  # with the same settings the others stay
    assert {cut.exit_layer for cut in CutSet.from_shar(in_dir=folder)} == {1}
    only = list(extend_shar(folder, second, ["features"], overwrite=True))
    assert not any(cut.has_custom(name) for cut in only for name in ("exit_layer", "predicted_loss", "units"))
    whole = list(extend_shar(folder, second))
    assert {cut.exit_layer for cut in whole} == {2}
    encoder = daisy.load(second.config.checkpoint).encoder("fixed", layer=2)
    expected = encoder(torch.from_numpy(whole[0].load_audio())).states[0][-1].numpy()
    numpy.testing.assert_allclose(whole[0].load_features()[: len(expected)], expected, atol=1e-5)


def test_a_manifest(place, cuts):
    assert [cut.id for cut in cuts] == [f"sub-{index}" if index % 2 else str(index) for index in range(len(LENGTHS))]
    assert [cut.num_samples for cut in cuts] == LENGTHS
    for cut in cuts:
        validate(cut, read_data=True)


def test_refusals(place, cuts, extractor, tmp_path):
    wave = numpy.zeros((1, 16000), dtype="float32")
    with pytest.raises(UsageError, match=r"tiny\.safetensors hears 16000 Hz, found 8000 Hz: cuts\.resample\(16000\)"):
        extractor.extract(wave, 8000)
    with pytest.raises(AudioError, match=r"^a cut has 2 channels, and one is wanted"):
        extractor.extract(numpy.zeros((2, 16000), dtype="float32"), 16000)
    with pytest.raises(AudioError, match=r"^a cut is too short: 399 samples, one frame needs 400$"):
        extractor.extract(wave[:, :399], 16000)
    for layer in (0, 5, "last"):
        with pytest.raises(UsageError, match=rf"^layer must be 'exit' or a number from 1 to 4, found {layer!r}$"):
            make(place, layer=layer, policy="")
    with pytest.raises(UsageError, match="^with layer 2 all cuts leave there, so no policy goes with it$"):
        make(place, layer=2)
    with pytest.raises(UsageError, match="a MixedCut holds no fields of its own"):
        add_exits(CutSet.from_cuts([cuts[0].append(cuts[1])]), extractor)
    with pytest.raises(UsageError, match="no Shar folder"):
        extend_shar(tmp_path, extractor)
    with pytest.raises(UsageError, match="unknown field 'exit_layers': did you mean exit_layer"):
        extend_shar(tmp_path, extractor, ["exit_layers"])
