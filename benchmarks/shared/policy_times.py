"""What leaving at each exit takes by each policy, which reads scores of its own."""

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
"""Nobody can run them: their time is that without scores."""


def measure_policy_times(
    backbone: AnyBackbone,
    heads: AnyHeads | None,
    waveforms: Sequence[Tensor],
    families: Iterable[str],
    tune: Traces,
    loss: str,
) -> dict[str, Tensor]:
    """Measure the time (E,) of leaving at each exit by each policy, over that of all layers without scores.

    What is timed takes turns, on one core; medians of the turns' ratios.

    Args:
        backbone: what runs.
        heads: that the policies read.
        waveforms: that are timed.
        families: names of policies.
        tune: what policies are fitted on, which says what they read; its layers are the exits.
        loss: likewise.
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
