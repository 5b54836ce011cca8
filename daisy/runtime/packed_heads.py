"""Exit heads whose unit classifiers are laid out for speed."""

from __future__ import annotations

from torch import Tensor

from daisy.models import ExitHeads
from daisy.runtime.dtypes import Precision, to_floating
from daisy.runtime.linear import pack_linear


class PackedHeads:
    """Exit heads as the exit loop runs them (`daisy.policies.scores.Heads`).

    Args:
        heads: whose weights.
        precision: what to compute in; with "int8" heads stay in float32.
    """

    def __init__(self, heads: ExitHeads, precision: Precision = "float32"):
        self.units = [pack_linear(classifier, to_floating(precision)) for classifier in heads.units]
        self.config, self.regressors = heads.config, heads.regressors

    def unit_logits(self, layer: int, features: Tensor) -> Tensor:
        """Classify what layer ``layer`` gives the heads, (F, D), to unit logits (F, K)."""
        return self.units[layer - 1](features)

    predicted_loss = ExitHeads.predicted_loss
