import math

import numpy
import pytest
import soundfile
import torch

from daisy import audio

RATES = [7, 4001, 8000, 11025, 15999, 16001, 16003, 22050, 44100, 48000, 192000]


def tone(rate, num_samples, hz):
    return (0.3 * torch.sin(2 * torch.pi * hz * torch.arange(num_samples, dtype=torch.float64) / rate)).float()


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("num_samples", [1, 2, 1000, 9999])
def test_length_is_rounded_up(rate, num_samples):
    for source, target in ((rate, 16000), (16000, rate)):
        resampled = audio.resample(torch.randn(num_samples), source, target)
        assert resampled.dtype == torch.float32
        assert len(resampled) == math.ceil(num_samples * target / source)
        assert resampled.isfinite().all()


@pytest.mark.parametrize("rate", [8000, 11025, 15999, 16001, 16003, 22050, 44100, 48000, 192000])
def test_a_tone_stays_a_tone_of_its_level(rate):
    seconds, edge = 20, 800
    for hz in (50, 440, 0.45 * min(rate, 16000)):
        expected = tone(16000, 16000 * seconds, hz)
        resampled = audio.resample(tone(rate, rate * seconds, hz), rate, 16000)
        error = (resampled - expected)[edge:-edge].abs().max() / 0.3
        assert error < (3e-5 if hz < 1000 else 1e-3)  # the filter is down by 0.007 dB at 0.9 of the band


def test_nothing_is_folded_into_the_band():
    for hz in (8300, 9000, 12000, 20000):
        assert audio.resample(tone(48000, 96000, hz), 48000, 16000)[800:-800].abs().max() < 1e-6  # 110 dB below


def test_the_same_rate_copies_nothing():
    waveform = torch.randn(100)
    assert audio.resample(waveform, 16000, 16000) is waveform


def test_what_follows_the_end_is_silence():
    """Samples do not depend on how much is cut off behind."""
    waveform = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    followed = audio.resample(torch.cat([waveform, torch.zeros(5000)]), 44100, 16000)
    alone = audio.resample(waveform, 44100, 16000)
    assert torch.allclose(alone, followed[: len(alone)], atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_close_to_torchaudios_best_filter(rate):
    """On a signal within the band that both let through."""
    functional = pytest.importorskip("torchaudio.functional", reason="needs torchaudio")
    waveform = sum(tone(rate, 3 * rate, hz) for hz in (97, 251, 533, 1009, 1999, 3011))
    expected = functional.resample(
        waveform, rate, 16000, 64, 0.9475937167399596, "sinc_interp_kaiser", 14.769656459379492
    )
    resampled = audio.resample(waveform, rate, 16000)
    assert len(resampled) == len(expected)
    difference = (resampled - expected)[800:-800]
    assert difference.square().mean() < 1e-8 * expected.square().mean()  # 1e-4 of the level


def test_a_header_tells_the_length(tmp_path):
    for rate, frames in ((44100, 44101), (16001, 5), (11025, 7), (8000, 400)):
        soundfile.write(tmp_path / "x.wav", numpy.zeros(frames), rate)
        assert audio.num_samples(tmp_path / "x.wav") == len(audio.read(tmp_path / "x.wav"))
        assert audio.num_samples(str(tmp_path / "x.wav")) == len(audio.read(str(tmp_path / "x.wav")))
