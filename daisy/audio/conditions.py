"""What recordings are heard through, for measuring: noise at given ratios, rooms, clipping.

Every condition of a kind uses the same noise excerpt, talkers or room for an utterance, so that levels differ in level
alone. Ratios are of mean powers (RMS) over the whole utterance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from daisy.audio import mixing
from daisy.errors import UsageError

GENERATED = ("white", "pink", "babble")
RESERVED = (*GENERATED, "clean", "reverberation", "clipping")
UNITS = {"reverberation": "s", "clipping": "%"}
TALKERS = 8
REVERBERATION_WIDTH = 0.1


@dataclass(frozen=True)
class Condition:
    """A kind of difficulty at a level."""

    kind: str
    """"clean", one of `GENERATED`, the name of recorded noise, "reverberation" or "clipping"."""
    level: float | None = None
    """Signal-to-noise ratio (dB), reverberation time (s), or share of samples that are clipped (%)."""

    @property
    def name(self) -> str:
        """Name it as tables do: "clean", "white 10 dB", "reverberation 0.5 s", "clipping 5 %"."""
        return self.kind if self.level is None else f"{self.kind} {self.level:g} {UNITS.get(self.kind, 'dB')}"


CLEAN = Condition("clean")


def make_conditions(
    kinds: Iterable[str],
    snrs_db: Sequence[float | None],
    reverberation_sec: Iterable[float] = (),
    clipped_percent: Iterable[float] = (),
) -> list[Condition]:
    """Make all conditions: each kind of noise at each ratio, rooms, clipping.

    Args:
        kinds: of noise: generated, or names of recorded noise.
        snrs_db: signal-to-noise ratios; None stands for clean speech, once.
        reverberation_sec: reverberation times of rooms.
        clipped_percent: shares of samples that are clipped.

    Returns:
        The conditions, clean first.

    Raises:
        UsageError: on noise without ratios or ratios without noise, levels out of range, or no condition at all.
    """
    kinds, ratios = list(kinds), [snr_db for snr_db in dict.fromkeys(snrs_db) if snr_db is not None]
    if bool(kinds) != bool(ratios):
        given = f"noise ({', '.join(kinds)})" if kinds else "signal-to-noise ratios"
        raise UsageError(f"{given} without {'signal-to-noise ratios' if kinds else 'noise'}: give both, or neither")
    _check_levels("signal-to-noise ratio", ratios, -100, 100, "dB")
    _check_levels("reverberation time", reverberation_sec := list(dict.fromkeys(reverberation_sec)), 0.15, 3, "s")
    _check_levels("share of clipped samples", clipped_percent := list(dict.fromkeys(clipped_percent)), 0.01, 99, "%")
    conditions = [CLEAN] if None in snrs_db else []
    conditions += [Condition(kind, snr_db) for kind in kinds for snr_db in ratios]
    conditions += [Condition("reverberation", seconds) for seconds in reverberation_sec]
    conditions += [Condition("clipping", percent) for percent in clipped_percent]
    if not conditions:
        raise UsageError("no conditions: give clean, some noise, reverberation or clipping")
    return conditions


def apply_condition(
    condition: Condition,
    waveforms: Sequence[Tensor],
    recorded: Mapping[str, mixing.NoiseBank],
    seed: int = 0,
    sample_rate: int = 16000,
) -> list[Tensor]:
    """Play waveforms under a condition.

    Args:
        condition: what to do to them.
        waveforms: clean ones (N_b,). Babble is made of them.
        recorded: noise recordings by name.
        seed: of excerpts, talkers and rooms.
        sample_rate: of waveforms and recordings, in Hz: rooms are simulated at it.

    Returns:
        (N_b,) each, as long as they were.

    Raises:
        UsageError: on a kind that is neither generated nor among the recorded.
    """
    if condition.level is None:
        return list(waveforms)
    if condition.kind == "clipping":
        return [mixing.clip(waveform, condition.level / 100) for waveform in waveforms]
    if condition.kind == "reverberation":
        low, high = condition.level - REVERBERATION_WIDTH / 2, condition.level + REVERBERATION_WIDTH / 2
        rooms = mixing.simulate_rooms(min(len(waveforms), 50), seed, sample_rate, reverberation_sec=(low, high))
        return [mixing.reverberate(waveform, rooms[i % len(rooms)]) for i, waveform in enumerate(waveforms)]
    if condition.kind not in GENERATED and condition.kind not in recorded:
        raise UsageError(f"noise {condition.kind!r} is neither recorded nor one of {', '.join(GENERATED)}")
    if condition.kind == "babble" and len(waveforms) < 2:
        raise UsageError("babble is made of the other recordings: give at least two")
    talkers = mixing.NoiseBank(waveforms) if condition.kind == "babble" else None
    mixed = []
    for index, waveform in enumerate(waveforms):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        if talkers is not None:
            noise = mixing.make_babble(talkers.without(waveform), TALKERS, len(waveform), generator)
        else:
            noise = _make_noise(condition.kind, len(waveform), recorded, generator)
        mixed.append(mixing.mix(waveform, noise, condition.level))
    return mixed


def _check_levels(what: str, levels: Iterable[float], low: float, high: float, unit: str) -> None:
    for level in levels:
        if not low <= level <= high:
            raise UsageError(f"a {what} must be from {low:g} to {high:g} {unit}, found {level:g}")


def _make_noise(kind: str, length: int, recorded: Mapping[str, mixing.NoiseBank], generator: torch.Generator) -> Tensor:
    if kind in recorded:
        return recorded[kind].draw(length, generator)
    return {"white": mixing.make_white_noise, "pink": mixing.make_pink_noise}[kind](length, generator)
