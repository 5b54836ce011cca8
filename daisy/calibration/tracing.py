"""Full runs: every score of every layer, and how far each layer's head is from the full model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from daisy import audio
from daisy.audio import conditions, mixing
from daisy.calibration.traces import Traces
from daisy.checkpoints import Model
from daisy.encoder import EarlyExitEncoder
from daisy.models import FinalHead, PackedLayout
from daisy.policies import Never
from daisy.policies.scores import SCORES, HeadOutputs, available_scores
from daisy.runtime.exit_output import ExitOutput

LOSSES = ("disagreement", "clean_disagreement", "loss", "kl_nats")


def mix_noise(
    waveforms: Sequence[Tensor], noises: mixing.NoiseBank, snr_db: float | None, seed: int = 0
) -> list[Tensor]:
    """Mix each utterance with an excerpt of its own, the same at every SNR; not at all where ``snr_db`` is None."""
    return conditions.apply_condition(conditions.Condition("noise", snr_db), waveforms, {"noise": noises}, seed)


@torch.no_grad()
def trace(
    model: Model,
    waveforms: Sequence[Tensor],
    names: Sequence[str],
    groups: Sequence[str] | None = None,
    *,
    condition: str = "clean",
    scores: Iterable[str] | None = None,
    reference: Sequence[Tensor] | None = None,
    score_stride: int = 1,
    batch_sec: float = 30.0,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[Traces, list[Tensor]]:
    """Run every layer, note every score, and compare each layer's head with the full model.

    Losses (nats, or shares of frames), where the model has HuBERT's own prediction head, which is the full model's:

    - ``disagreement``: frames whose unit at this layer is not the full model's on the same input;
    - ``clean_disagreement``: frames whose unit at this layer is not the reference's;
    - ``loss``: mean loss of the layer's head against the reference's units;
    - ``kl_nats``: mean divergence from the full model's distribution on the same input to the layer's.

    Args:
        model: with exit heads.
        waveforms: (N_b,) each, at the backbone's rate.
        names: of the utterances.
        groups: the speaker of each; the utterance itself where None.
        condition: what was done to them.
        scores: which to compute; where None all that the heads give.
        reference: (T_b,) units of each, such as the full model's on clean versions; those on the same input where None.
        score_stride: heads look at every ``score_stride``-th frame, and losses are of these.
        batch_sec: seconds of audio in a batch.
        progress: called with the number of utterances just run.

    Returns:
        The traces, and the full model's units (T_b,) on each utterance; none without a prediction head.

    Raises:
        CheckpointError: where the model has no exit heads.
    """
    if scores is None:  # without heads the encoder says what is missing
        scores = available_scores(model.heads) if model.heads else SCORES
    encoder = EarlyExitEncoder(
        model.backbone, model.heads, Never(), keep="last", scores=scores, score_stride=score_stride
    )
    config = model.backbone.config
    size = (len(waveforms), config.num_layers)
    traced_scores = {name: torch.zeros(size) for name in encoder.score_names}
    against_full = _FullModel(model.final_head, size, score_stride) if model.final_head and model.heads else None
    for indices in audio.batch_by_length([len(w) for w in waveforms], int(batch_sec * config.sample_rate)):
        layers: list[HeadOutputs] = []
        out = encoder([waveforms[i] for i in indices], observe=layers.append)
        for name, values in out.scores.items():
            traced_scores[name][indices] = values
        if against_full is not None:
            against_full.compare(indices, out, layers, reference)
        progress(len(indices))
    losses = against_full.losses if against_full else {}
    if losses:
        traced_scores["final_agreement"] = 1 - losses["disagreement"]
    traces = Traces(
        utterances=tuple(names),
        groups=tuple(groups or names),
        conditions=(condition,) * len(waveforms),
        scores=traced_scores,
        losses=losses,
        weights=torch.ones(len(waveforms)),
        costs=torch.arange(1, config.num_layers + 1).float(),
        layers=tuple(range(1, config.num_layers + 1)),
    )
    return traces, against_full.units if against_full else []


class _FullModel:
    """What the full model predicts, and how far each layer's head is from it.

    Args:
        head: HuBERT's own prediction head.
        size: (B, L) of all runs.
        score_stride: of the frames that heads look at.
    """

    def __init__(self, head: FinalHead, size: tuple[int, int], score_stride: int):
        self.head, self.score_stride = head, score_stride
        self.losses = {name: torch.zeros(size) for name in LOSSES}
        self.units: list[Tensor] = [torch.empty(0)] * size[0]

    def compare(
        self, indices: list[int], out: ExitOutput, layers: list[HeadOutputs], reference: Sequence[Tensor] | None
    ) -> None:
        """Note the losses and the full model's units of a batch: utterances ``indices`` of all."""
        full = self.head(torch.cat([states[-1] for states in out.states])).log_softmax(-1)  # (F, K)
        full_units = full.argmax(-1)
        wanted = full_units if reference is None else torch.cat([reference[i] for i in indices]).to(full.device)
        rows = PackedLayout(out.num_frames, full.device).strided_rows(self.score_stride)
        full_rows, wanted_rows = full[rows], wanted[rows]
        for layer, outputs in enumerate(layers):
            for name, values in zip(LOSSES, _losses(outputs, full_rows, wanted_rows), strict=True):
                self.losses[name][indices, layer] = values.cpu()
        for index, units in zip(indices, full_units.cpu().split(out.num_frames.tolist()), strict=True):
            self.units[index] = units


def _losses(outputs: HeadOutputs, full: Tensor, wanted: Tensor) -> tuple[Tensor, ...]:
    """`LOSSES` at one layer, (B,) each, from the full model's (F', K) and the units wanted (F',)."""
    log_probs, guesses = outputs.log_probs, outputs.units
    return (
        outputs.mean((guesses != full.argmax(-1)).float()),
        outputs.mean((guesses != wanted).float()),
        outputs.mean(-log_probs.gather(-1, wanted[..., None])[..., 0]),
        outputs.mean((full.exp() * (full - log_probs)).sum(-1)),
    )
