import numpy
import pytest
import torch

from daisy.audio import mixing
from daisy.audio.augmentation import Augmentation, Augmenter
from daisy.errors import UsageError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def speech():
    return torch.randn(16000, generator=generator(5)) * 0.1


@pytest.fixture
def bank():
    return mixing.NoiseBank([torch.randn(9000, generator=generator(i)) for i in range(3)])


def ratio_db(speech, heard):
    return float(10 * torch.log10(speech.square().mean() / (heard - speech).square().mean()))


def test_by_default_speech_stays_as_it_is(speech):
    augmenter = Augmenter(Augmentation())
    assert augmenter.draw_speed(generator()) == 1.0
    assert torch.equal(augmenter(speech, generator()), speech)


def test_ratios_cover_the_range_and_the_share_is_the_one_asked_for(speech, bank):
    augmenter = Augmenter(Augmentation(noise_prob=0.5, snr_db=(-5.0, 20.0)), bank)
    heard = [augmenter(speech, generator(seed)) for seed in range(300)]
    ratios = torch.tensor([ratio_db(speech, noisy) for noisy in heard if not torch.equal(noisy, speech)])
    assert 120 < len(ratios) < 180  # 150 expected, standard deviation 8.7
    assert ratios.min() > -5.01
    assert ratios.max() < 20.01
    assert ratios.max() - ratios.min() > 20
    assert torch.equal(augmenter(speech, generator(7)), augmenter(speech, generator(7)))


def test_one_other_talker_is_never_the_louder_one(speech, bank):
    alone = Augmenter(Augmentation(talkers_prob=1.0, max_talkers=1, snr_db=(-5.0, 5.0)), talkers=bank)
    babble = Augmenter(Augmentation(talkers_prob=1.0, max_talkers=8, snr_db=(-5.0, -5.0)), talkers=bank)
    assert min(ratio_db(speech, alone(speech, generator(seed))) for seed in range(50)) > -0.01
    ratios = sorted(ratio_db(speech, babble(speech, generator(seed))) for seed in range(50))
    assert ratios[0] == pytest.approx(-5.0, abs=0.01)
    assert ratios[-1] == pytest.approx(-5.0, abs=0.01)  # a range that ends below 0 dB is kept


def test_an_utterance_is_no_talker_behind_itself(speech):
    talkers = mixing.NoiseBank([torch.ones(16000), torch.full((16000,), -1.0)])
    augmenter = Augmenter(Augmentation(talkers_prob=1.0, max_talkers=1), talkers=talkers)
    for own, sign in zip(talkers.recordings, (-1, 1), strict=True):
        behind = [augmenter(speech, generator(seed), own) - speech for seed in range(20)]
        assert [int(talker.mean().sign()) for talker in behind] == 20 * [sign]


def test_talkers_of_a_babble_are_equally_loud():
    loud, soft = torch.zeros(4000), torch.zeros(4000)
    loud[::2], soft[1::2] = 5.0, 0.01
    bank = mixing.NoiseBank([loud, soft])
    both = mixing.make_babble(bank, 40, 4000, generator())
    powers = both[::2].square().mean(), both[1::2].square().mean()
    assert 0.05 < powers[0] / powers[1] < 20  # 250,000 where nothing is done


def test_a_room_keeps_length_loudness_and_timing(speech):
    response = torch.zeros(3000)
    response[120], response[900] = 1.0, -0.4
    heard = mixing.reverberate(speech, response)
    assert len(heard) == len(speech)
    assert heard.square().mean() == pytest.approx(float(speech.square().mean()), rel=1e-4)
    expected = speech.clone()
    expected[780:] -= 0.4 * speech[:-780]
    scale = (speech.square().mean() / expected.square().mean()).sqrt()
    assert torch.allclose(heard, expected * scale, atol=1e-5)


@pytest.mark.parametrize("seconds", [0.2, 0.6, 1.5])
def test_rooms_sound_as_long_as_asked_for(seconds):
    """The time of 60 dB, from the decay between 5 and 25 dB below the start (ISO 3382: T20)."""
    pytest.importorskip("pyroomacoustics")
    times = []
    for room in mixing.simulate_rooms(6, 3, reverberation_sec=(seconds, seconds)):
        left = room[int(room.abs().argmax()) :].double().square().flip(0).cumsum(0).flip(0)
        level_db = 10 * (left / left[0]).log10()
        places = ((level_db < -5) & (level_db > -25)).nonzero()[:, 0]
        slope = numpy.polyfit(places / 16000, level_db[places], 1)[0]
        times.append(-60 / slope)
    assert numpy.median(times) == pytest.approx(seconds, rel=0.15)
    assert max(times) < 1.5 * seconds
    assert min(times) > 0.7 * seconds


def test_rooms_are_drawn_by_the_seed_and_decay():
    pytest.importorskip("pyroomacoustics")
    rooms, again, others = mixing.simulate_rooms(5, 0), mixing.simulate_rooms(5, 0), mixing.simulate_rooms(5, 1)
    assert all(torch.equal(a, b) for a, b in zip(rooms, again, strict=True))
    assert not torch.equal(rooms[0][:100], others[0][:100])
    for room in rooms:
        direct = int(room.abs().argmax())
        assert direct < 800  # 17 m
        assert room[direct : direct + 800].square().sum() > 20 * room[-800:].square().sum()


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_speed_changes_length_and_pitch(speed):
    tone = torch.sin(2 * torch.pi * 500 * torch.arange(16000) / 16000)
    heard = Augmenter(Augmentation(speeds=(speed,))).change_speed(tone, speed)
    assert abs(len(heard) - 16000 / speed) <= 1
    peak = torch.fft.rfft(heard).abs().argmax() * 16000 / len(heard)
    assert abs(float(peak) - 500 * speed) < 2


def test_gain(speech):
    heard = Augmenter(Augmentation(gain_db=(6.0, 6.0)))(speech, generator())
    assert torch.allclose(heard, speech * 10 ** (6 / 20))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_prob": 1.5}, "noise_prob must be between 0 and 1, found 1.5"),
        ({"snr_db": (5.0, 0.0)}, r"snr_db must be \[low, high\] in dB"),
        ({"speeds": (0.0,)}, "speeds must be positive"),
        ({"max_talkers": 0}, "max_talkers must be at least 1"),
        ({"noise_prob": 0.5}, "noise_prob is 0.5, and there is nothing to draw from"),
        ({"reverb_prob": 0.1}, "reverb_prob is 0.1, and there is nothing"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        Augmenter(Augmentation(**settings))
