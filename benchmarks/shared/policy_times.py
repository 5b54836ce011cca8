"""Time until each exit with each policy, which depends on the scores that the policy reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from daisy.calibration.cost import measure_layer_seconds
from daisy.calibration.families import fit_family
from daisy.calibration.traces import Traces
from daisy.models.kinds import AnyBackbone, AnyHeads

TURNS = 5
NOT_RUN = ("hindsight", "oracle")
"""Policies that cannot be run: their time is that without scores."""


def measure_policy_times(
    backbone: AnyBackbone,
    heads: AnyHeads | None,
    waveforms: Sequence[Tensor],
    families: Iterable[str],
    tune: Traces,
    loss: str,
) -> dict[str, Tensor]:
    """Measure the time (E,) until each exit with each policy, relative to that of all layers without scores.

    The systems take turns, on one core; results are medians of the turns' ratios.

    Args:
        backbone: backbone to run.
        heads: heads that the policies read.
        waveforms: waveforms to time.
        families: names of policies.
        tune: runs that policies are fitted on, which decides their scores; its layers are the exits.
        loss: loss that policies are fitted for.
    """
    nothing = frozenset[str]()
    reads = {name: nothing if name in NOT_RUN else fit_family(name, tune, loss).at(0.5).reads for name in families}
    ratios: dict[frozenset[str], list[Tensor]] = {}
    for _ in range(TURNS):
        seconds = {
            scores: measure_layer_seconds(backbone, heads, waveforms, scores, repeats=1, exits=tune.layers)
            for scores in (nothing, *dict.fromkeys(reads.values()))
        }
        for scores, times in seconds.items():
            ratios.setdefault(scores, []).append(times / seconds[nothing][-1])
    return {name: torch.stack(ratios[scores]).quantile(0.5, dim=0) for name, scores in reads.items()}
