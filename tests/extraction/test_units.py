import sys

import numpy
import pytest
import soundfile
import torch

from daisy import AudioError, OutputError, audio
from daisy.errors import UsageError
from daisy.extraction.units import (
    centre_features,
    claim_folder,
    fit_kmeans,
    make_layer_states,
    make_mfcc,
    sample_features,
    write_dictionary,
    write_units,
)
from tests.conftest import tiny_model


@pytest.fixture
def recordings(tmp_path, waveforms):
    for index, waveform in enumerate(waveforms[3:]):
        soundfile.write(tmp_path / f"{index}.wav", waveform.numpy(), 16000, subtype="FLOAT")
    return audio.find([str(tmp_path)])


def test_mfcc_is_39_wide_at_the_rate_asked_for(waveforms):
    full, half = make_mfcc(100)(waveforms[4]), make_mfcc(50)(waveforms[4])
    assert full.shape == (98, 39)  # (16000 - 400) // 160 + 1
    assert torch.equal(full[::2], half)
    with pytest.raises(UsageError, match="50 or 100 a second, not 25"):
        make_mfcc(25)


def test_mfcc_units_are_those_that_torchaudio_gives(waveforms):
    """fairseq's examples/hubert/simple_kmeans computes its features with torchaudio."""
    torchaudio = pytest.importorskip("torchaudio", reason="needs torchaudio")
    generator = torch.Generator().manual_seed(3)
    same = total = 0
    for waveform in waveforms:
        coefficients = torchaudio.compliance.kaldi.mfcc(waveform[None], sample_frequency=16000, use_energy=False).T
        deltas = torchaudio.functional.compute_deltas(coefficients)
        expected = torch.cat([coefficients, deltas, torchaudio.functional.compute_deltas(deltas)]).T
        features = make_mfcc(100)(waveform)
        assert features.shape == expected.shape
        assert (features - expected).abs().max() < 1e-4 * expected.abs().max()
        centres = expected[torch.randint(len(expected), (20,), generator=generator)]
        centres = centres + torch.randn(centres.shape, generator=generator)
        same += int((torch.cdist(features, centres).argmin(1) == torch.cdist(expected, centres).argmin(1)).sum())
        total += len(features)
    assert same == total == 380


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "kaldi_native_fbank", None)
    with pytest.raises(UsageError, match=r"MFCC units need kaldi-native-fbank: pip install 'daisy-speech\[analysis\]'"):
        make_mfcc(50)


def test_states_are_the_layers_own(waveforms):
    model = tiny_model()
    features = make_layer_states(model.backbone, 2)(waveforms[4])
    assert features.shape == (49, 32)
    with pytest.raises(UsageError, match="layer must be 1 to 4, found 5"):
        make_layer_states(model.backbone, 5)


def test_files_are_what_fairseq_reads_and_a_stopped_run_goes_on(recordings, tmp_path):
    features = make_mfcc(50)
    drawn = sample_features(recordings, features, 10_000, 0, lambda count: None)
    centres = fit_kmeans(drawn, 5, 0)
    assert centres.shape == (5, 39)
    whole, stopped = tmp_path / "whole.km", tmp_path / "stopped.km"
    assert sum(write_units(recordings, features, centres, whole)) == 4
    lines = whole.read_text().splitlines()
    for recording, line in zip(recordings, lines, strict=True):
        units = numpy.array(line.split(), dtype=int)
        expected = features(audio.read(recording.path)).numpy()
        distances = ((expected[:, None] - centres[None]) ** 2).sum(-1)
        assert (units == distances.argmin(1)).all()
    (tmp_path / "stopped.km.part").write_text("\n".join(lines[:2]) + "\n" + lines[2][:5])
    assert list(write_units(recordings, features, centres, stopped)) == [2, 1, 1]
    assert stopped.read_text() == whole.read_text()
    assert list(write_units(recordings, features, centres, stopped)) == [4]
    write_dictionary(5, tmp_path)
    assert (tmp_path / "dict.km.txt").read_text() == "0 1\n1 1\n2 1\n3 1\n4 1\n"


def test_units_made_otherwise_are_refused(tmp_path):
    settings = {"source": "mfcc", "clusters": 2, "train.tsv": "0123"}
    claim_folder(tmp_path, settings)
    claim_folder(tmp_path, settings)
    claim_folder(tmp_path, {**settings, "valid.tsv": "4567"})  # another split may come later
    with pytest.raises(OutputError, match=r"units made with another clusters; use another folder"):
        claim_folder(tmp_path, {**settings, "clusters": 3})
    with pytest.raises(OutputError, match=r"units made with another train\.tsv"):
        claim_folder(tmp_path, {**settings, "train.tsv": "89ab"})


def test_recordings_without_units_stop_the_run(tmp_path):
    with pytest.raises(UsageError, match="7 clusters need as many frames, found 3"):
        fit_kmeans(numpy.zeros((3, 2)), 7, 0)
    with pytest.raises(UsageError, match="lists no recordings"):
        sample_features([], make_mfcc(50), 10, 0, print)
    soundfile.write(tmp_path / "short.wav", numpy.zeros(100), 16000)
    with pytest.raises(AudioError, match=r"short\.wav: too short: 100 samples, one frame needs 400"):
        sample_features(audio.find([str(tmp_path)]), make_mfcc(50), 10, 0, print)


def test_centred_features_have_no_mean(waveforms):
    plain, centred = make_mfcc(50)(waveforms[4]), centre_features(make_mfcc(50))(waveforms[4])
    assert centred.mean(0).abs().max() < 1e-4
    assert torch.allclose(plain - centred, plain.mean(0).expand_as(plain), atol=1e-4)


def test_a_recording_listed_twice_is_labelled_once(recordings, tmp_path):
    calls = []
    features = make_mfcc(50)

    def counted(waveform):
        calls.append(len(waveform))
        return features(waveform)

    centres = fit_kmeans(sample_features(recordings, features, 10_000, 0, lambda count: None), 5, 0)
    twice = [recording for recording in recordings for _ in range(2)]
    assert sum(write_units(twice, counted, centres, tmp_path / "twice.km")) == 8
    lines = (tmp_path / "twice.km").read_text().splitlines()
    assert lines[::2] == lines[1::2]
    assert len(calls) == 4
