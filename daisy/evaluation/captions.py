"""Describe a figure in a sentence made from its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from daisy.calibration.intervals import Estimate
from daisy.evaluation.style import RANKED


def choose_spoken(names: Iterable[str]) -> str:
    """Choose the policy that a title speaks of: the default one, or the next most important; empty if there is none."""
    names = [name for name in names if name not in ("fixed", "hindsight", "oracle")]
    return min(names, key=lambda name: RANKED.index(name) if name in RANKED else len(RANKED), default="")


def say_exits(policy: str, layers: Sequence[Estimate], names: Sequence[str], of: str = "noise") -> str:
    """Say whether a policy goes deeper as audio gets worse.

    Args:
        policy: name of the policy.
        layers: mean exit layers, from the best audio to the worst.
        names: names of the first and the last condition.
        of: what makes audio worse.

    Returns:
        A sentence such as "forecast goes deeper on noise: layer 7.0 clean, 9.2 at -5 dB"; it says so if the two
        intervals overlap.
    """
    best, worst = layers[0], layers[-1]
    ends = f"layer {best.mean:.1f} {_at(names[0])}, {worst.mean:.1f} {_at(names[-1])}"
    if worst.low > best.high:
        return f"{policy} goes deeper on {of}: {ends}"
    if worst.high < best.low:
        return f"{policy} leaves earlier on {of}: {ends}"
    return f"{policy} shows no clear change on {of}: {ends}, intervals overlap"


def say_points(what: str, depth: float, values: Sequence[tuple[str, float]], form: str = ".3f") -> str:
    """Give the values of some policies at one depth, such as "At 60% of the layers errors are 0.12 (forecast), ...".

    Args:
        what: the compared quantity, as the sentence's subject and verb.
        depth: executed share of the layers, or of the time.
        values: name and value of each policy.
        form: format of the values.
    """
    named = ", ".join(f"{value:{form}} ({name})" for name, value in values)
    return f"At {depth:.0%} {what} {named}"


def _at(name: str) -> str:
    """Write a condition as a place: "clean", "at 0 dB"."""
    return f"at {name}" if name.endswith("dB") else name
