import itertools

import pytest
import torch

from daisy.audio import conditions, mixing
from daisy.audio.conditions import Condition
from daisy.errors import UsageError


@pytest.fixture
def speech():
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(n, generator=generator) * (1 + torch.sin(torch.arange(n) / 500)) * 0.1 for n in (16000, 24000, 9000)
    ]


@pytest.mark.parametrize("kind", ["white", "pink", "babble", "rain"])
@pytest.mark.parametrize("snr_db", [20.0, -5.0])
def test_noise_of_every_kind_comes_at_its_ratio(speech, kind, snr_db):
    recorded = {"rain": mixing.NoiseBank([torch.randn(5000, generator=torch.Generator().manual_seed(1))])}
    heard = conditions.apply_condition(Condition(kind, snr_db), speech, recorded)
    for clean, noisy in zip(speech, heard, strict=True):
        assert noisy.shape == clean.shape
        ratio = 10 * torch.log10(clean.square().mean() / (noisy - clean).square().mean())
        assert abs(float(ratio) - snr_db) < 0.02


def test_levels_differ_in_level_alone(speech):
    for kind in ("white", "pink", "babble"):
        loud, soft = (
            conditions.apply_condition(Condition(kind, snr), speech, {})[1] - speech[1] for snr in (0.0, 20.0)
        )
        torch.testing.assert_close(loud, 10 * soft, atol=1e-4, rtol=1e-3)


def test_pink_noise_falls_by_3_db_an_octave():
    power = torch.stack(
        [
            torch.fft.rfft(mixing.make_pink_noise(16384, torch.Generator().manual_seed(i))).abs().square()
            for i in range(50)
        ]
    )
    octaves = [float(power[:, 2**k : 2 ** (k + 1)].mean().log10() * 10) for k in range(4, 13)]
    steps = [before - after for before, after in itertools.pairwise(octaves)]
    assert all(abs(step - 3.01) < 0.5 for step in steps)


def test_clipping_cuts_the_share_asked_for(speech):
    clipped = conditions.apply_condition(Condition("clipping", 10.0), speech, {})[0]
    level = clipped.abs().max()
    assert float((clipped.abs() >= level - 1e-7).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert torch.equal(clipped[speech[0].abs() < level], speech[0][speech[0].abs() < level])


def test_longer_reverberation_smears_more(speech):
    click = [torch.zeros(16000) for _ in range(4)]
    for waveform in click:
        waveform[2000] = 1.0
    tails = []
    for seconds in (0.2, 0.6):
        heard = conditions.apply_condition(Condition("reverberation", seconds), click, {})
        tails.append(sum(float(w[2800:].square().sum() / w.square().sum()) for w in heard) / 4)
    assert tails[1] > 2 * tails[0]


def test_the_driest_rooms_are_small_ones():
    """Large rooms sound longer than 0.1 s whatever their walls are."""
    for seed in range(3):
        rooms = mixing.simulate_rooms(10, seed, reverberation_sec=(0.1, 0.2))
        assert len(rooms) == 10
        assert all(torch.isfinite(room).all() for room in rooms)
    with pytest.raises(UsageError, match=r"reverberation times of 0\.1 s or more, found 0\.05"):
        mixing.simulate_rooms(1, 0, reverberation_sec=(0.05, 0.2))


def test_babble_is_of_the_others_alone():
    ramps = [torch.linspace(index + 1, index + 2, 4000) for index in range(4)]
    bank = mixing.NoiseBank([*ramps, torch.zeros(4000)])
    assert [r is ramp for r, ramp in zip(bank.without(ramps[1]).recordings, [ramps[0], *ramps[2:]], strict=True)]
    assert len(bank.recordings) == 4
    with pytest.raises(UsageError, match="no noise recording with any sound"):
        conditions.apply_condition(Condition("babble", 0.0), [ramps[0], torch.zeros(4000)], {})


def test_a_room_is_the_same_at_every_rate(speech):
    """What is heard later than 50 ms after the click, in the same rooms at 8 and at 16 kHz, by other rays."""
    tails = []
    for rate in (8000, 16000):
        click = torch.zeros(rate)
        click[rate // 10] = 1.0
        heard = conditions.apply_condition(Condition("reverberation", 0.5), [click] * 12, {}, sample_rate=rate)
        tails.append([float(w[rate // 10 + rate // 20 :].square().sum() / w.square().sum()) for w in heard])
    assert sum(tails[0]) == pytest.approx(sum(tails[1]), rel=0.15)
    assert all(0.1 < share < 0.5 for share in tails[0] + tails[1])


def test_names_and_grid():
    grid = conditions.make_conditions(["white", "rain"], [None, 10.0], [0.5], [5.0])
    assert [condition.name for condition in grid] == [
        "clean", "white 10 dB", "rain 10 dB", "reverberation 0.5 s", "clipping 5 %",
    ]  # fmt: skip
    assert conditions.apply_condition(grid[0], [torch.ones(3)], {})[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["white"], [None]), "noise (white) without signal-to-noise ratios"),
        (([], [None, 5.0]), "signal-to-noise ratios without noise"),
        (([], []), "no conditions"),
        ((["white"], [float("inf")]), "from -100 to 100 dB, found inf"),
        (([], [None], [0.05]), "reverberation time must be from 0.15 to 3 s, found 0.05"),
        (([], [None], [], [150.0]), "share of clipped samples must be from 0.01 to 99 %, found 150"),
    ],
)
def test_impossible_grids_are_refused(arguments, message):
    with pytest.raises(UsageError) as error:
        conditions.make_conditions(*arguments)
    assert message in str(error.value)


def test_levels_given_twice_count_once():
    assert len(conditions.make_conditions(["white"], [None, 10.0, 10.0, None])) == 2


def test_refusals(speech):
    with pytest.raises(UsageError, match="noise 'rain' is neither recorded nor one of white, pink, babble"):
        conditions.apply_condition(Condition("rain", 5.0), speech, {})
    with pytest.raises(UsageError, match="give at least two"):
        conditions.apply_condition(Condition("babble", 5.0), speech[:1], {})
