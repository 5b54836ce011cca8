"""Compute the sentence posterior of arXiv:2309.09546: how sure a beam search is of its best text.

The N best texts of a beam search have scores: log-probabilities summed over the frames. Their softmax is a distribution
over these N texts; its maximum is the posterior. torchaudio's decoder is flashlight's, in the extra "recognition".
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from daisy.errors import UsageError

NUM_BEST = 10
BEAM_SIZE = 20
"""Texts that the search keeps at each frame; the paper's own code searches with a lexicon and 1500 texts."""
BEAM_TOKENS = 12
"""Number of likeliest tokens of a frame that the search continues with."""


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
    """Compute the sentence posterior of an utterance.

    Args:
        log_probs: (T, V) float32 on the CPU.
        blank: index of the blank among the V tokens.

    Returns:
        The posterior, above 0 and at most 1.

    Raises:
        UsageError: where the decoder is not installed.
    """
    best = _make_decoder(log_probs.shape[1], blank)(log_probs.contiguous()[None])[0]
    scores = torch.tensor([hypothesis.score for hypothesis in best], dtype=torch.float64)
    return float(scores.softmax(0).max())


@lru_cache(maxsize=8)
def _make_decoder(num_tokens: int, blank: int) -> Any:
    """Make a decoder without a lexicon, with numbers as tokens; flashlight's silence token is the blank."""
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
