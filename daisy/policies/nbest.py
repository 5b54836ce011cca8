"""The sentence posterior of arXiv:2309.09546: how sure a beam search is of its first text.

The N best texts of a beam search have scores, log-probabilities summed over the frames. Their softmax is a distribution
over these N texts; its maximum is the posterior. torchaudio's decoder is flashlight's: the extra "recognition" has it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from daisy.errors import UsageError

NUM_BEST = 10
BEAM_SIZE = 20
"""Texts that the search keeps at each frame; the paper's own code searches with a lexicon and 1500."""
BEAM_TOKENS = 12
"""Of a frame, how many of the likeliest tokens the search goes on with."""


def load_decoder() -> Any:
    """Import torchaudio's ``ctc_decoder``.

    Raises:
        UsageError: where torchaudio or flashlight's decoder is not installed.
    """
    try:
        from torchaudio.models.decoder import ctc_decoder
    except (ImportError, RuntimeError, AttributeError) as error:
        raise UsageError(
            f"beam search needs torchaudio and flashlight-text ({str(error).splitlines()[0]}); install them, or "
            "decode without a beam",
            remedy="recognition",
        ) from None
    return ctc_decoder


def nbest_posterior(log_probs: Tensor, blank: int) -> float:
    """Compute the posterior of an utterance.

    Args:
        log_probs: (T, V) float32 on the CPU.
        blank: which of the V tokens is the blank.

    Returns:
        Above 0, at most 1.

    Raises:
        UsageError: where there is no decoder.
    """
    best = _make_decoder(log_probs.shape[1], blank)(log_probs.contiguous()[None])[0]
    scores = torch.tensor([hypothesis.score for hypothesis in best], dtype=torch.float64)
    return float(scores.softmax(0).max())


@lru_cache(maxsize=8)
def _make_decoder(num_tokens: int, blank: int) -> Any:
    """A decoder without words, whose tokens are numbers; flashlight's silence is no other token's."""
    tokens = [str(index) for index in range(num_tokens)]
    return load_decoder()(
        lexicon=None,
        tokens=tokens,
        nbest=NUM_BEST,
        beam_size=BEAM_SIZE,
        beam_size_token=min(BEAM_TOKENS, num_tokens),
        log_add=True,
        blank_token=tokens[blank],
        sil_token=tokens[blank],
    )
