"""Run models in full: every score of every layer, and the distance of each layer's head from the full model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from daisy import audio
from daisy.audio import conditions, mixing
from daisy.calibration.kept_runs import BatchRuns, KeptRuns
from daisy.calibration.traces import Traces
from daisy.checkpoints import Model
from daisy.encoder import EarlyExitEncoder, Keep
from daisy.errors import CheckpointError
from daisy.models import FinalHead, PackedLayout
from daisy.policies import Never
from daisy.policies.scores import SCORES, HeadOutputs, available_scores
from daisy.runtime.exit_output import ExitOutput

BATCH_SEC = 30.0
Observe = Callable[[list[int], ExitOutput, list[HeadOutputs]], None]
"""See `trace`."""
LOSSES = ("disagreement", "clean_disagreement", "loss", "kl_nats")


def mix_noise(
    waveforms: Sequence[Tensor], noises: mixing.NoiseBank, snr_db: float | None, seed: int = 0
) -> list[Tensor]:
    """Mix each utterance with an excerpt of its own, the same at every SNR; not at all if ``snr_db`` is None."""
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
    batch_sec: float = BATCH_SEC,
    kept: KeptRuns | None = None,
    kept_as: str = "",
    progress: Callable[[int], None] = lambda count: None,
    observe: Observe | None = None,
    keep: Keep = "last",
) -> tuple[Traces, list[Tensor]]:
    """Run every layer, record every score, and compare each layer's head with the full model.

    The full model's units are those of HuBERT's own prediction head or, if the checkpoint has none (Hugging Face's,
    fine-tuned ones), of the last exit head. Losses (nats, or shares of frames):

    - ``disagreement``: frames whose unit at this layer differs from the full model's on the same input;
    - ``clean_disagreement``: frames whose unit at this layer differs from the reference's;
    - ``loss``: mean loss of the layer's head against the reference's units;
    - ``kl_nats``: mean divergence from the full model's distribution on the same input to the layer's.

    Args:
        model: model with exit heads.
        waveforms: (N_b,) each, at the backbone's sample rate.
        names: names of the utterances.
        groups: speaker of each utterance; None: the utterance itself.
        condition: name of what was done to the utterances.
        scores: scores to compute; None: all that the heads give.
        reference: (T_b,) units of each, such as the full model's on clean versions; None: those on the same input.
        score_stride: heads look at every ``score_stride``-th frame, and losses are over these frames.
        batch_sec: seconds of audio in a batch.
        kept: file that keeps runs on the disk as they are made; runs found there are not made again.
        kept_as: name of the condition in that file; if empty, ``condition``.
        progress: called with the number of utterances just run.
        observe: called with each batch that is run: the utterances' indices, the encoder's output, and every layer's
            `daisy.policies.scores.HeadOutputs`. Not called for kept runs.
        keep: states that the output holds, as in `EarlyExitEncoder`.

    Returns:
        The traces, and the full model's units (T_b,) on each utterance.

    Raises:
        CheckpointError: where the model has no exit heads, or computes NaN or infinity.
        OutputError: where runs cannot be kept.
    """
    if scores is None:  # without heads the encoder says what is missing
        scores = available_scores(model.heads) if model.heads else SCORES
    encoder = EarlyExitEncoder(
        model.backbone, model.heads, Never(), keep=keep, scores=scores, score_stride=score_stride
    )
    size = (len(waveforms), len(encoder.exits))
    traced_scores = {name: torch.zeros(size) for name in encoder.score_names}
    losses = {name: torch.zeros(size) for name in LOSSES}
    all_units: list[Tensor] = [torch.empty(0)] * len(waveforms)
    for indices in make_batches(waveforms, model, batch_sec):
        runs = kept.get(kept_as or condition, indices) if kept is not None else None
        if runs is None:
            wanted = None if reference is None else [reference[i] for i in indices]
            layers: list[HeadOutputs] = []
            out = encoder([waveforms[i] for i in indices], observe=layers.append)
            runs = _compare_with_full_model(model.final_head, out, layers, wanted, encoder.score_stride)
            if observe is not None:
                observe(indices, out, layers)
            check_numbers(runs, [names[i] for i in indices], encoder.exits)
            if kept is not None:
                kept.add(kept_as or condition, indices, runs)
            progress(len(indices))
        for table, values in ((traced_scores, runs.scores), (losses, runs.losses)):
            for name in table:
                table[name][indices] = values[name]
        for index, units in zip(indices, runs.units, strict=True):
            all_units[index] = units
    traced_scores["final_agreement"] = 1 - losses["disagreement"]
    traces = Traces(
        utterances=tuple(names),
        groups=tuple(groups or names),
        conditions=(condition,) * len(waveforms),
        scores=traced_scores,
        losses=losses,
        weights=torch.ones(len(waveforms)),
        costs=torch.tensor(encoder.exits).float(),
        layers=encoder.exits,
    )
    return traces, all_units


def make_batches(waveforms: Sequence[Tensor], model: Model, batch_sec: float) -> list[list[int]]:
    """Batch utterances (N_b,) of similar length, and return the indices of each batch's utterances."""
    max_samples = int(batch_sec * model.backbone.config.sample_rate)
    return list(audio.batch_by_length([len(waveform) for waveform in waveforms], max_samples))


def _compare_with_full_model(
    final_head: FinalHead | None,
    out: ExitOutput,
    layers: list[HeadOutputs],
    wanted: list[Tensor] | None,
    score_stride: int,
) -> BatchRuns:
    """Compute a batch's losses; those against a reference use the units ``wanted``, (T_b,) each."""
    if final_head is not None:
        logits = final_head(torch.cat([states[-1] for states in out.states]))  # (F, K)
    else:
        last = layers[-1]
        logits = last.heads.unit_logits(last.layer, last.all_features)
    full = logits.float().log_softmax(-1)
    full_units = full.argmax(-1)
    wanted_units = full_units if wanted is None else torch.cat(wanted).to(full.device)
    rows = PackedLayout(out.num_frames, full.device).strided_rows(score_stride)
    full_rows, wanted_rows = full[rows], wanted_units[rows]
    by_layer = [_losses(outputs, full_rows, wanted_rows) for outputs in layers]
    losses = {
        name: torch.stack([values.cpu() for values in by_name], 1)
        for name, by_name in zip(LOSSES, zip(*by_layer, strict=True), strict=True)
    }
    units = list(full_units.cpu().split(out.num_frames.tolist()))
    return BatchRuns(scores=out.scores, losses=losses, units=units)


def check_numbers(runs: BatchRuns, names: Sequence[str], exits: Sequence[int]) -> None:
    """Refuse runs from which nothing could be concluded.

    Args:
        runs: runs of a batch.
        names: names of its utterances.
        exits: layers of the exits.

    Raises:
        CheckpointError: where a value is NaN or infinite; names the first utterance and value.
    """
    for name, values in {**runs.scores, **runs.losses}.items():
        finite = values[:, 1:].isfinite()  # some scores have none at the first layer
        if not finite.all():
            row, place = (~finite).nonzero()[0].tolist()
            where = f"{names[row]}: {name} is {float(values[row, place + 1])} at layer {exits[place + 1]}"
            raise CheckpointError(f"{where}: the model's weights are damaged, or its numbers pass their range")


def _losses(outputs: HeadOutputs, full: Tensor, wanted: Tensor) -> tuple[Tensor, ...]:
    """Compute `LOSSES` at one layer, (B,) each, from the full model's (F', K) and the units wanted (F',)."""
    log_probs, guesses = outputs.log_probs, outputs.units
    return (
        outputs.mean((guesses != full.argmax(-1)).float()),
        outputs.mean((guesses != wanted).float()),
        outputs.mean(-log_probs.gather(-1, wanted[..., None])[..., 0]),
        outputs.mean((full.exp() * (full - log_probs)).sum(-1)),
    )
