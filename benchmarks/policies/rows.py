"""Rows about exits on full runs, as several files of results have them."""

from __future__ import annotations

from daisy.evaluation.comparison import Evaluation

LOSS = "disagreement"
"""Share of frames whose unit is not the full model's: what policies are compared by."""


def make_agreement_fields(evaluation: Evaluation) -> dict[str, float]:
    """Make the fields for a policy's agreement with the full model's units, beside the static cut's and chance's."""
    losses = evaluation.losses
    return {
        "unit_agreement": 1 - losses[LOSS].mean,
        "fixed_unit_agreement": 1 - evaluation.fixed[LOSS],
        "random_unit_agreement": 1 - evaluation.random[LOSS],
        "clean_unit_agreement": 1 - losses["clean_disagreement"].mean,
        "kl_nats": losses["kl_nats"].mean,
    }


def make_gain_fields(evaluation: Evaluation) -> dict[str, float]:
    """Make the fields for how much above the static cut and chance a policy is, with intervals."""
    gain, over_random = evaluation.gain[LOSS], evaluation.gain_over_random[LOSS]
    return {
        **{"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high},
        "over_random": over_random.mean,
        "over_random_low": over_random.low,
        "over_random_high": over_random.high,
    }
