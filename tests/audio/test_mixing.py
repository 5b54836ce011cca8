import numpy
import pytest
import torch

from daisy.audio import mixing
from daisy.calibration import intervals, tracing
from daisy.errors import UsageError


@pytest.mark.parametrize("snr_db", [20.0, 0.0, -5.0])
def test_the_ratio_of_powers_is_the_one_asked_for(snr_db):
    generator = torch.Generator().manual_seed(0)
    speech, noise = torch.randn(16000, generator=generator) * 0.05, torch.randn(16000, generator=generator) * 3
    added = mixing.mix(speech, noise, snr_db) - speech
    measured = 10 * torch.log10(speech.square().mean() / added.square().mean())
    assert abs(float(measured) - snr_db) < 0.01


@pytest.mark.parametrize("seed", range(20))
def test_noise_and_rooms_are_torchaudios_to_the_last_bit(seed):
    functional = pytest.importorskip("torchaudio.functional", reason="needs torchaudio")
    generator = torch.Generator().manual_seed(seed)
    length, taps = (int(torch.randint(1, limit, (1,), generator=generator)) for limit in (50000, 5000))
    speech, noise = torch.randn(2, length, generator=generator)
    response = torch.randn(taps, generator=generator)
    snr_db = float(40 * torch.rand(1, generator=generator) - 10)
    assert torch.equal(mixing.mix(speech, noise, snr_db), functional.add_noise(speech, noise, torch.tensor(snr_db)))
    assert torch.equal(mixing.convolve(speech, response), functional.fftconvolve(speech, response))


def test_silence_stays_as_it_is():
    speech, silent = torch.randn(100), torch.zeros(100)
    assert torch.equal(mixing.mix(speech, silent, 0.0), speech)
    assert torch.equal(mixing.mix(silent, speech, 0.0), silent)
    decayed = torch.full((100,), 1e-25)  # as at the end of a float file
    assert torch.equal(mixing.mix(speech, decayed, 0.0), speech)
    with pytest.raises(UsageError, match="speech of 100 samples and noise of 99 cannot be mixed"):
        mixing.mix(speech, silent[1:], 0.0)


def test_short_noise_is_repeated_from_its_start():
    noise = torch.arange(5.0)
    drawn = mixing.draw_excerpt(noise, 12, torch.Generator().manual_seed(1))
    assert len(drawn) == 12
    assert ((drawn[1:] - drawn[:-1]) % 5 == 1).all()


def test_a_bank_needs_sound():
    with pytest.raises(UsageError, match="no noise recording with any sound"):
        mixing.NoiseBank([torch.zeros(10)])


def test_conditions_share_their_noise():
    """The same excerpt at every SNR, another for every utterance: differences are of level only."""
    bank = mixing.NoiseBank([torch.randn(5000, generator=torch.Generator().manual_seed(i)) for i in range(4)])
    speech = [torch.randn(3000, generator=torch.Generator().manual_seed(9))] * 2
    clean = tracing.mix_noise(speech, bank, None)
    assert all(torch.equal(a, b) for a, b in zip(clean, speech, strict=True))
    loud, soft = (tracing.mix_noise(speech, bank, snr) for snr in (0.0, 20.0))
    for index in range(2):
        ratio = (loud[index] - speech[index]) / (soft[index] - speech[index])
        assert abs(float(ratio.median()) - 10.0) < 0.01
    assert not torch.allclose(loud[0], loud[1])


def test_bootstrap_resamples_speakers():
    values = numpy.repeat([1.0, 3.0], 500)
    by_utterance = intervals.bootstrap(values, [str(i) for i in range(1000)])
    by_speaker = intervals.bootstrap(values, ["a"] * 500 + ["b"] * 500)
    assert by_utterance.mean == by_speaker.mean == 2.0
    assert 0.1 < by_utterance.high - by_utterance.low < 0.15  # 2 * 1.96 / sqrt(1000)
    assert (by_speaker.low, by_speaker.high) == (1.0, 3.0)
    assert intervals.bootstrap(values, ["a"] * 1000) == (2.0, 2.0, 2.0)
