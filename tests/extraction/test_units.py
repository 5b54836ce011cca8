import dataclasses
import sys

import numpy
import pytest
import soundfile
import torch

from daisy import audio
from daisy.errors import AudioError, UsageError
from daisy.extraction.features import ComputedFeatures, centre_features, make_layer_states, make_mfcc
from daisy.extraction.units import (
    fit_kmeans,
    load_centres,
    sample_features,
    save_centres,
)
from tests.conftest import POST_NORM, tiny_model


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


def test_features_that_are_no_numbers_are_refused(recordings, tmp_path):
    """A checkpoint may have learnt such weights; or features are a share of something that is zero in silence."""
    model = tiny_model()
    with torch.no_grad():
        model.backbone.encoder.transformer.layers[1].final_layer_norm.bias[0] = float("nan")
    with pytest.raises(AudioError, match=rf"^{recordings[0].path}: its features are NaN or infinite"):
        make_layer_states(model.backbone, 2).read(recordings[0])
    soundfile.write(tmp_path / "silent.wav", numpy.zeros(8000), 16000)
    silent = audio.Recording(path=tmp_path / "silent.wav", name="silent.wav")
    mfcc = make_mfcc(50)
    loudness_free = dataclasses.replace(
        mfcc, compute=lambda waveforms: [mfcc(waveform) / waveform.std() for waveform in waveforms]
    )
    failed = []
    frames, drawn = sample_features(
        [silent, *recordings], loudness_free, 10**6, 0, lambda count: None, lambda bad, error: failed.append(bad)
    )
    assert failed == [silent]
    assert sorted(drawn) == list(range(1, 1 + len(recordings)))
    assert numpy.isfinite(frames).all()


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "kaldi_native_fbank", None)
    with pytest.raises(UsageError, match=r"MFCC units need kaldi-native-fbank: pip install 'daisy-speech\[analysis\]'"):
        make_mfcc(50)


def test_states_are_the_layers_own(waveforms):
    model = tiny_model()
    features = make_layer_states(model.backbone, 2)(waveforms[4])
    assert features.shape == (49, 32)
    with pytest.raises(UsageError, match="layers 1 to 4, found layer 5"):
        make_layer_states(model.backbone, 5)


def test_the_rates_are_the_checkpoints(recordings):
    """25 frames a second with an eighth convolution; an 8 kHz model hears 8 kHz, and its frames are as long."""
    mhubert = dataclasses.replace(POST_NORM, conv_layers=(*POST_NORM.conv_layers, (16, 2, 2)))
    features = make_layer_states(tiny_model(mhubert).backbone, 2)
    assert (features.sample_rate, features.per_sec, features.min_samples, features.width) == (16000, 25.0, 720, 32)
    narrow = make_layer_states(tiny_model(dataclasses.replace(POST_NORM, sample_rate=8000)).backbone, 2)
    assert (narrow.sample_rate, narrow.per_sec, narrow.min_samples) == (8000, 25.0, 400)
    seconds = [soundfile.info(recording.path).duration for recording in recordings]
    assert [len(features.read(r)) for r in recordings] == [int((16000 * s - 720) // 640) + 1 for s in seconds]
    assert [len(narrow.read(r)) for r in recordings] == [int((8000 * s - 400) // 320) + 1 for s in seconds]
    mfcc = make_mfcc(50)
    assert (mfcc.sample_rate, mfcc.per_sec, mfcc.min_samples, mfcc.width) == (16000, 50.0, 400, 39)


def test_what_cannot_be_fitted_on_is_refused():
    with pytest.raises(UsageError, match="7 clusters need as many frames, found 3"):
        fit_kmeans(numpy.zeros((3, 2)), 7, 0)
    with pytest.raises(UsageError, match="lists no recordings"):
        sample_features([], make_mfcc(50), 10, 0, print, print)


def test_a_bad_recording_gives_its_place_to_the_next_one_drawn(recordings, tmp_path):
    """The order is the seed's and the number's: what is drawn of sound recordings stays what it was."""
    soundfile.write(tmp_path / "4.wav", numpy.zeros(100), 16000)
    (tmp_path / "5.wav").write_text("no audio")
    listed = audio.find([str(tmp_path)])
    failed = {}
    frames, drawn = sample_features(
        listed, make_mfcc(50), 10**6, 0, lambda count: None, lambda r, error: failed.setdefault(r.name, str(error))
    )
    order = numpy.random.default_rng(0).permutation(6).tolist()
    assert drawn == [index for index in order if index < 4]
    expected = [make_mfcc(50).read(listed[index]).numpy() for index in drawn]
    assert (frames == numpy.concatenate(expected)).all()
    assert sorted(failed) == ["4.wav", "5.wav"]
    assert failed["4.wav"].endswith("4.wav: too short: 100 samples at 16000 Hz, one frame needs 400 (25 ms)")
    with pytest.raises(UsageError, match="none of the 2 recordings"):
        sample_features(listed[4:], make_mfcc(50), 10, 0, lambda count: None, lambda *what: None)


def test_repeats_that_follow_a_bad_recording_are_drawn_too(recordings, tmp_path):
    (tmp_path / "bad.wav").write_text("no audio")
    bad = next(recording for recording in audio.find([str(tmp_path)]) if recording.name == "bad.wav")
    listed = [recordings[0]] * 4 + [bad]
    order = numpy.random.default_rng(0).permutation(5).tolist()
    assert order.index(4) == 1  # three repeats follow it
    frames, drawn = sample_features(listed, make_mfcc(50), 10**6, 0, lambda count: None, lambda *what: None)
    assert drawn == [index for index in order if index < 4]
    assert len(frames) == 4 * len(make_mfcc(50).read(recordings[0]))


def test_centres_of_another_number_or_width_are_refused(tmp_path):
    path = tmp_path / "kmeans.npy"
    save_centres(numpy.ones((50, 39), dtype=numpy.float32), path)
    assert load_centres(path, 50, 39).shape == (50, 39)
    with pytest.raises(UsageError, match=r"kmeans\.npy: holds 50 centres, and 5 units are asked for: ask for 50"):
        load_centres(path, 5, 39)
    with pytest.raises(UsageError, match=r"centres of features 39 wide, and these are 768 wide"):
        load_centres(path, 50, 768)
    save_centres(numpy.full((5, 39), numpy.nan), path)
    with pytest.raises(UsageError, match="NaN or infinite"):
        load_centres(path, 5, 39)
    for content in (b"", b"PK\3\4", b"\x80\x04N."):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"kmeans\.npy: not a NumPy file of k-means centres"):
            load_centres(path, 5, 39)
    numpy.save(path, numpy.arange(10))
    with pytest.raises(UsageError, match="not a NumPy file of k-means centres, a row of floats"):
        load_centres(path, 5, 39)


def test_centred_features_have_no_mean(waveforms):
    features = centre_features(make_mfcc(50))
    assert (features.per_sec, features.sample_rate, features.width) == (50.0, 16000, 39)
    plain, centred = make_mfcc(50)(waveforms[4]), features(waveforms[4])
    assert centred.mean(0).abs().max() < 1e-4
    assert torch.allclose(plain - centred, plain.mean(0).expand_as(plain), atol=1e-4)


def test_a_recording_that_spoils_its_group_does_not_spoil_the_others(recordings):
    """Recordings that share a window: one whose states are NaN, or that is refused, is left out alone."""
    refused = len(audio.read(recordings[2].path))

    def compute(waveforms):
        if any(len(waveform) == refused for waveform in waveforms):
            if len(waveforms) == 3:
                raise AudioError("not this one")
            return [torch.full((3, 1), float("nan")) for _ in waveforms]
        return [waveform[:3, None] for waveform in waveforms]

    features = ComputedFeatures(
        compute=compute, sample_rate=16000, min_samples=400, per_sec=50, width=1,
        fit_together=lambda lengths: len(lengths) <= 3,
    )  # fmt: skip
    failed = []
    groups = list(features.read_groups(recordings, lambda bad, error: failed.append((bad, str(error)))))
    assert [[recording.name for recording, _ in group] for group in groups] == [["0.wav", "1.wav"], ["3.wav"]]
    for recording, frames in [pair for group in groups for pair in group]:
        assert torch.equal(frames[:, 0], audio.read(recording.path)[:3])
    assert failed == [(recordings[2], f"{recordings[2].path}: its features are NaN or infinite: no unit is the nearest "
                       "to them")]  # fmt: skip


def test_a_recording_that_is_listed_repeatedly_is_computed_once_and_counts_as_often(recordings):
    computed = []
    mfcc = make_mfcc(50)
    features = dataclasses.replace(mfcc, compute=lambda waves: computed.extend(map(len, waves)) or mfcc.compute(waves))
    listed = [recordings[index] for index in (0, 1, 1, 2, 0, 3, 1)]
    frames, drawn = sample_features(listed, features, 10**6, 0, lambda count: None, print)
    assert sorted(computed) == sorted(len(audio.read(recording.path)) for recording in recordings)
    assert drawn == numpy.random.default_rng(0).permutation(7).tolist()
    assert (frames == numpy.concatenate([mfcc.read(listed[index]).numpy() for index in drawn])).all()
