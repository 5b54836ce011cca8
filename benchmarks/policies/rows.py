"""Row fields about exits on full runs, shared by several results files."""

from __future__ import annotations

from daisy.evaluation.comparison import Evaluation

LOSS = "disagreement"
"""Share of frames whose unit differs from the full model's; policies are compared by it."""


def make_agreement_fields(evaluation: Evaluation) -> dict[str, float]:
    """Make the fields for a policy's agreement with the full model's units, and that of the static cut and chance."""
    losses = evaluation.losses
    return {
        "unit_agreement": 1 - losses[LOSS].mean,
        "fixed_unit_agreement": 1 - evaluation.fixed[LOSS],
        "random_unit_agreement": 1 - evaluation.random[LOSS],
        "clean_unit_agreement": 1 - losses["clean_disagreement"].mean,
        "kl_nats": losses["kl_nats"].mean,
    }


def make_gain_fields(evaluation: Evaluation) -> dict[str, float]:
    """Make the fields for a policy's lead over the static cut and chance, with intervals."""
    gain, over_random = evaluation.gain[LOSS], evaluation.gain_over_random[LOSS]
    return {
        **{"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high},
        "over_random": over_random.mean,
        "over_random_low": over_random.low,
        "over_random_high": over_random.high,
    }
