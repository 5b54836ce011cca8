"""What leaving at each exit takes by each policy, which reads scores of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from daisy.calibration.cost import measure_layer_seconds
from daisy.calibration.families import fit_family
from daisy.calibration.traces import Traces
from daisy.models.kinds import AnyBackbone, AnyHeads

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
    """Measure the seconds (E,) of leaving at each exit by each policy, on one core.

    Args:
        backbone: what runs.
        heads: that the policies read.
        waveforms: that are timed.
        families: names of policies.
        tune: what policies are fitted on, which says what they read; its layers are the exits.
        loss: likewise.
    """
    reads = {
        name: frozenset[str]() if name in NOT_RUN else fit_family(name, tune, loss).at(0.5).reads for name in families
    }
    seconds = {
        scores: measure_layer_seconds(backbone, heads, waveforms, scores, exits=tune.layers)
        for scores in dict.fromkeys(reads.values())
    }
    return {name: seconds[scores] for name, scores in reads.items()}
