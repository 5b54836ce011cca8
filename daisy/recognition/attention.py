"""Decode texts with the attention decoders of a recogniser, and their times with its CTC exits."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from daisy.checkpoints import Model
from daisy.errors import CheckpointError
from daisy.recognition.decoding import Hypothesis, align


class AttentionSearch:
    """Beam search with the attention decoder at the exit of an utterance.

    The CTC exit at the same layer gives each token's time by forced alignment, so a text never has more tokens than CTC
    can align to its frames. Each step runs the decoder over the whole text so far: cost grows with the square of the
    text's length, and does not depend on how many layers were saved.

    Args:
        model: recogniser with attention decoders.
        beam_size: number of hypotheses kept; 1 takes the likeliest token at each step.

    Raises:
        CheckpointError: where the model has no attention decoders.
    """

    def __init__(self, model: Model, beam_size: int = 5):
        if model.decoders is None or model.tokens is None:
            raise CheckpointError("this checkpoint has no attention decoders: its texts are read from CTC exits")
        self.decoders, self.blank, self.beam_size = model.decoders, model.tokens.blank, beam_size

    @torch.no_grad()
    def read(self, layer: int, states: Tensor, log_probs: Tensor) -> Hypothesis:
        """Read an utterance's text.

        Args:
            layer: layer of its exit.
            states: states of that layer, (T, D).
            log_probs: log-probabilities of the CTC exit there, (T, V).

        Returns:
            The text with the highest mean log-probability per token, the end included.

        Raises:
            CheckpointError: where the decoder's outputs are not numbers.
        """
        tokens, score = self._search(layer, states.float())
        frames = align(log_probs, tokens, self.blank)
        return Hypothesis(tokens=tuple(tokens), frames=frames, score=score)

    def _search(self, layer: int, states: Tensor) -> tuple[list[int], float]:
        config, num_frames = self.decoders.config, len(states)
        beams = torch.tensor([[config.begin]], device=states.device)
        scores = torch.zeros(1, device=states.device)
        ended: list[tuple[float, float, list[int]]] = []
        projected = self.decoders.project_states(layer, states)
        while len(beams):
            logits = self.decoders.predict_next(layer, projected, beams)
            logits[:, [self.blank, *({config.begin} - {config.end})]] = float("-inf")
            log_probs = logits.log_softmax(-1)
            for row, text in enumerate(beams[:, 1:].tolist()):  # mask tokens that the remaining frames cannot hold
                free = num_frames - count_frames(text)
                if free < 1:
                    log_probs[row, torch.arange(config.num_tokens) != config.end] = float("-inf")
                elif free < 2 and text:
                    log_probs[row, text[-1]] = float("-inf")
            totals = (scores[:, None] + log_probs).flatten()
            best = totals.topk(min(self.beam_size, int(totals.isfinite().sum())))
            rows, following = best.indices // config.num_tokens, best.indices % config.num_tokens
            grown = torch.cat([beams[rows], following[:, None]], 1)
            live = []
            for place, (total, text) in enumerate(zip(best.values.tolist(), grown[:, 1:].tolist(), strict=True)):
                if text[-1] == config.end:
                    ended.append((total / len(text), total, text[:-1]))
                else:
                    live.append(place)
            beams, scores = grown[live], best.values[live]
            if len(ended) >= self.beam_size:
                break
        if not ended:
            raise CheckpointError(
                f"the attention decoder at layer {layer} gives no numbers (NaN): it, or the states that it reads, are "
                "damaged"
            )
        _, score, tokens = max(ended)
        return tokens, score


def count_frames(tokens: list[int]) -> int:
    """Count the fewest frames that CTC needs for a text: one per token, and a blank between two equal ones."""
    return len(tokens) + sum(first == second for first, second in pairwise(tokens))
