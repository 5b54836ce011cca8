"""Speech, noise and rooms at the checkpoint's rate, with recordings as short as one of its frames."""

import contextlib
import dataclasses
import hashlib
import json

import numpy
import pytest
import soundfile
import torch

from daisy import audio
from daisy.audio.conditions import Condition, apply_condition
from daisy.calibration import trace_conditions, tracing
from tests.conftest import POST_NORM, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def recordings(tmp_path):
    generator = numpy.random.default_rng(0)
    for index, length in enumerate((16000, 12000, 700)):
        soundfile.write(tmp_path / f"{index}.wav", 0.1 * generator.standard_normal(length), 16000, subtype="FLOAT")
    return audio.find([tmp_path])


def test_a_recording_shorter_than_the_models_frame_is_listed(recordings, tmp_path):
    """With an eighth convolution a frame sees 720 samples."""
    config = dataclasses.replace(POST_NORM, conv_layers=(*POST_NORM.conv_layers, (16, 2, 2)))
    speech = trace_conditions.read_speech(recordings, None, tmp_path, config.sample_rate, config.frame_span)
    assert [len(waveform) for waveform in speech.waveforms] == [16000, 12000]
    assert list(speech.failed) == [str(tmp_path / "2.wav")]
    model = tiny_model(config)
    traces = trace_conditions.run_conditions(model, speech, [Condition("white", 10.0)], {})
    assert traces.scores["entropy"].shape == (2, 4)
    assert len(trace_conditions.read_speech(recordings, None, tmp_path, 16000).waveforms) == 3


def test_a_recording_longer_than_the_model_hears_is_listed(recordings, tmp_path):
    speech = trace_conditions.read_speech(recordings, None, tmp_path, 16000, max_samples=12000)
    assert [len(waveform) for waveform in speech.waveforms] == [12000, 700]
    assert list(speech.failed.values()) == [
        f"{tmp_path / '0.wav'}: lasts 1.0 s, more than the 0.75 s that the network hears at once"
    ]


def test_rooms_are_simulated_at_the_models_rate(recordings, tmp_path):
    model = tiny_model(dataclasses.replace(POST_NORM, sample_rate=8000))
    speech = trace_conditions.read_speech(recordings[:2], None, tmp_path, 8000)
    assert [len(waveform) for waveform in speech.waveforms] == [8000, 6000]
    room = Condition("reverberation", 0.5)
    entropy = trace_conditions.run_conditions(model, speech, [room], {}).scores["entropy"]
    for rate in (8000, 16000):
        heard = apply_condition(room, speech.waveforms, {}, sample_rate=rate)
        expected = tracing.trace(model, heard, speech.names, condition="room")[0].scores["entropy"]
        assert torch.allclose(entropy, expected, atol=1e-5) == (rate == 8000)


@pytest.mark.parametrize("keep", [False, True])
def test_noise_is_hashed_once_for_all_ratios_and_only_where_runs_are_kept(recordings, tmp_path, monkeypatch, keep):
    model = tiny_model()
    speech = trace_conditions.read_speech(recordings, None, tmp_path, 16000)
    rain = {"rain": audio.NoiseBank([torch.randn(9000, generator=torch.Generator().manual_seed(5))])}
    digests = []
    digest = audio.NoiseBank.digest
    monkeypatch.setattr(audio.NoiseBank, "digest", lambda bank: digests.append(digest(bank)) or digests[-1])
    conditions = [Condition("rain", level) for level in (20.0, 10.0, 0.0)]
    with contextlib.ExitStack() as stack:
        kept = None
        if keep:
            kept = trace_conditions.open_kept_runs(
                tmp_path / "runs", "0" * 64, model, speech, scores=None, score_stride=1
            )
            stack.enter_context(kept)
        trace_conditions.run_conditions(model, speech, conditions, rain, kept=kept)
    samples = rain["rain"].recordings[0].numpy().tobytes()
    assert digests == [hashlib.sha256(b"9000 " + samples).hexdigest()] * keep
    if keep:
        names = {json.loads(line)["condition"] for line in (tmp_path / "runs").read_text().splitlines()[1:]}
        assert names == {"clean", *(f"rain, {level}, seed 0, {digests[0]}" for level in (20.0, 10.0, 0.0))}
