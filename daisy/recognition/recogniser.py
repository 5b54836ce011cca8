"""Recognise speech with a model, each utterance at its own exit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daisy.checkpoints import Model
from daisy.checkpoints.model import HeadsKind
from daisy.encoder import Waveforms
from daisy.errors import CheckpointError, UsageError
from daisy.models import Backbone, CTCHeads, PackedLayout
from daisy.policies import Policy
from daisy.policies.scores import HeadOutputs, list_by_layer
from daisy.recognition.attention import AttentionSearch
from daisy.recognition.decoding import Hypothesis, Word, decode_greedily, find_words
from daisy.runtime.dtypes import Precision
from daisy.runtime.exit_output import ExitOutput
from daisy.runtime.packing_cache import pack_heads

Decoder = Callable[[Tensor], Hypothesis]
"""A function of (T, V) log-probabilities, such as `daisy.recognition.BeamSearch`."""


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """The result for an utterance."""

    text: str
    """Words with one space between them."""
    exit_layer: int
    """Layer at which the text was read, 1 to L; for a long recording in windows, the deepest."""
    num_layers: int
    """Number of layers, L."""
    confidence: float
    """Geometric mean of the best path's probabilities over the frames, 0 to 1."""
    words: list[Word]
    """Words in order, with times."""
    scores: dict[str, list[float | None]]
    """Each score at layers 1 to the exit layer; None where there is no exit."""
    num_frames: int
    """Number of frames of the utterance."""
    window_exits: list[int] = field(default_factory=list)
    """Exit layer of each window (`daisy.recognition.long_audio`); one entry where it ran as a whole."""


class Recogniser:
    """Recognises speech, each utterance at the exit that its policy chooses.

    An utterance's text and exit do not depend on the others in the batch, as described in `daisy.EarlyExitEncoder`.

    Args:
        model: model with CTC exits and tokens.
        policy: a name, a file from ``daisy calibrate``, or a policy; None: "entropy" if the checkpoint has its
            threshold, and "never" if not.
        heads: heads whose scores the policy reads: "ctc", the exits that recognise text, or "units", DAISY's own heads,
            which know nothing about text. In both cases utterances exit at the layers of CTC exits.
        decode: decodes a CTC exit's log-probabilities to tokens, or an `AttentionSearch`; None: greedy decoding.
        scores: scores to compute besides those that the policy reads.
        dtype: data type to compute in; None: the model's own.
        settings: settings of a policy given by name: ``threshold=0.1``.

    Raises:
        CheckpointError: where the model has no CTC exits, or lacks the heads that are named.
        PolicyError: as in `daisy.Model.encoder`.

    Example:
        >>> import torch
        >>> from daisy import Backbone, BackboneConfig, Model
        >>> from daisy.models import CTCHeads, CTCHeadsConfig, Tokens
        >>> from daisy.recognition import Recogniser
        >>> backbone = Backbone(BackboneConfig(num_layers=2, width=32, ffn_width=64, num_heads=4))
        >>> tokens = Tokens.characters("abc")
        >>> exits = CTCHeads(CTCHeadsConfig(layers=(1, 2), width=32, num_tokens=len(tokens)))
        >>> recognise = Recogniser(Model(backbone=backbone, ctc=exits, tokens=tokens), "fixed", layer=1)
        >>> recognise([torch.zeros(16000)])[0].exit_layer
        1
    """

    def __init__(
        self,
        model: Model,
        policy: str | Path | Policy | None = None,
        *,
        heads: HeadsKind = "ctc",
        decode: Decoder | AttentionSearch | None = None,
        scores: Iterable[str] = (),
        dtype: Precision | torch.dtype | None = None,
        **settings: Any,
    ):
        ctc, tokens = model.exit_heads("ctc"), model.tokens
        assert isinstance(ctc, CTCHeads)
        assert tokens is not None
        if heads == "units" and model.heads is None:
            raise CheckpointError("this checkpoint has no heads on units, only exits that write text")
        self.model, self.ctc, self.tokens = model, ctc, tokens
        if policy is None:
            policy = "entropy" if heads == "ctc" and "entropy" in model.ctc_policies else "never"
        self.encoder = model.encoder(
            policy,
            heads=heads,
            exits=self.ctc.config.layers,
            keep="last",
            scores=scores,
            score_stride=1 if heads == "ctc" else None,
            dtype=dtype,
            **settings,
        )
        self._decode = decode

    @property
    def frame_sec(self) -> float:
        """Seconds between the starts of two frames."""
        config = self.model.backbone.config
        return config.frame_hop / config.sample_rate

    def __call__(self, waveforms: Waveforms, num_samples: Tensor | Sequence[int] | None = None) -> list[Transcript]:
        """Recognise a batch.

        Args:
            waveforms: waveforms at the backbone's rate, as for `EarlyExitEncoder.forward`.
            num_samples: likewise.

        Returns:
            A transcript for each utterance.

        Raises:
            AudioError: as in `EarlyExitEncoder.forward`.
        """
        out, log_probs = self.run(waveforms, num_samples)
        return [
            self.write(
                frames,
                [int(out.exit_layer[index])],
                {name: rows[index] for name, rows in out.scores.items()},
                states=out.states[index][-1],
            )
            for index, frames in enumerate(log_probs)
        ]

    @torch.no_grad()
    def run(
        self, waveforms: Waveforms, num_samples: Tensor | Sequence[int] | None = None
    ) -> tuple[ExitOutput, list[Tensor]]:
        """Run a batch without decoding it.

        Args:
            waveforms: as for `__call__`.
            num_samples: likewise.

        Returns:
            The encoder's output, and for each utterance the log-probabilities (T_b, V) at its exit, on the CPU.
        """
        observed: list[HeadOutputs] = []
        reads_ctc = self.encoder.heads is self.ctc
        out = self.encoder(waveforms, num_samples, observe=observed.append if reads_ctc else None)
        with torch.autocast(self.model.backbone.device.type, enabled=False):  # log-probabilities are computed here
            log_probs = _take_at_exits(out, observed) if reads_ctc else self._classify(out)
        return out, [frames.cpu() for frames in log_probs]

    def _classify(self, out: ExitOutput) -> list[Tensor]:
        """Compute each utterance's (T_b, V) from its states, where the policy has read other heads."""
        is_packed = isinstance(self.model.backbone, Backbone)
        heads = pack_heads(self.ctc, self.encoder.dtype) if is_packed else self.ctc
        assert heads is not None
        log_probs = []
        for states, layer in zip(out.states, out.exit_layer.tolist(), strict=True):
            layout = PackedLayout(torch.tensor([len(states[-1])]), states.device)
            log_probs.append(heads.unit_logits(layer, states[-1], layout).float().log_softmax(-1))
        return log_probs

    @property
    def reads_attention(self) -> bool:
        """Whether attention decoders give the texts; they read a recording as a whole."""
        return isinstance(self._decode, AttentionSearch)

    def write(
        self,
        log_probs: Tensor,
        exit_layers: Sequence[int],
        scores: Mapping[str, Tensor],
        *,
        states: Tensor | None = None,
    ) -> Transcript:
        """Turn an utterance's outputs into text.

        Args:
            log_probs: log-probabilities (T, V).
            exit_layers: layers that gave them; several for a recording in windows.
            scores: scores, (E,) each, NaN where not reached.
            states: states of the exit's layer, (T, D), for attention decoders.

        Returns:
            The transcript.

        Raises:
            UsageError: where attention decoders would read a recording in windows.
        """
        if isinstance(self._decode, AttentionSearch):
            if states is None:
                raise UsageError("attention decoders read a recording as a whole, not in windows")
            hypothesis = self._decode.read(exit_layers[0], states, log_probs)
        else:
            hypothesis = self._decode(log_probs) if self._decode else decode_greedily(log_probs, self.tokens.blank)
        words = find_words(hypothesis, self.tokens, log_probs, self.frame_sec)
        exit_layer = max(exit_layers)
        return Transcript(
            text=" ".join(word.text for word in words),
            exit_layer=exit_layer,
            num_layers=self.model.backbone.config.num_layers,
            confidence=math.exp(float(log_probs.amax(-1).double().mean())),
            words=words,
            scores={name: list_by_layer(values, self.encoder.exits, exit_layer) for name, values in scores.items()},
            num_frames=len(log_probs),
            window_exits=list(exit_layers),
        )


def _take_at_exits(out: ExitOutput, observed: Sequence[HeadOutputs]) -> list[Tensor]:
    """Take each utterance's (T_b, V) at its exit from the outputs of all exits for the utterances that reached them."""
    log_probs: dict[int, Tensor] = {}
    for outputs in observed:
        present = (out.exit_layer >= outputs.layer).nonzero()[:, 0].tolist()
        leaving = [row for row, index in enumerate(present) if out.exit_layer[index] == outputs.layer]
        if leaving:
            rows = outputs.log_probs.split([int(out.num_frames[index]) for index in present])
            log_probs |= {present[row]: rows[row] for row in leaving}
    return [log_probs[index] for index in range(len(out))]
