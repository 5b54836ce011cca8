"""Run a recogniser in full: every score of every exit, its text, and the errors in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from daisy.calibration.kept_runs import BatchRuns, KeptRuns
from daisy.calibration.traces import Traces
from daisy.calibration.tracing import BATCH_SEC, check_numbers, make_batches
from daisy.checkpoints import Model
from daisy.encoder import EarlyExitEncoder
from daisy.errors import UsageError
from daisy.models import CTCHeads
from daisy.policies import Never
from daisy.policies.scores import WITHOUT_HEADS, HeadOutputs, available_scores
from daisy.policies.texts import collapse, edit_distance

UNIT_PREFIX = "unit_"
"""Prefix of the scores of heads on units, which are listed beside those of the CTC exits."""
TEXT_END = -1
"""Mark after each exit's tokens, where the texts of an utterance are kept as one tensor."""


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """What full runs of a recogniser compute and compare with."""

    references: Sequence[str] | None = None
    """Reference text of each utterance, in the tokens' case; None if unknown."""
    with_units: bool = False
    """Whether the scores of the heads on units are computed too, at the CTC exits' layers."""
    scores: tuple[str, ...] | None = None
    """Scores of the CTC exits; None: all but the posterior, which takes a beam search at every exit."""


@torch.no_grad()
def trace_texts(
    model: Model,
    waveforms: Sequence[Tensor],
    names: Sequence[str],
    groups: Sequence[str] | None = None,
    *,
    task: TextTask,
    condition: str = "clean",
    reference: Sequence[str] | None = None,
    score_stride: int = 1,
    batch_sec: float = BATCH_SEC,
    kept: KeptRuns | None = None,
    kept_as: str = "",
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[Traces, list[str]]:
    """Run every layer of a recogniser, record every exit's scores and greedily decoded text, and count errors.

    Losses, at each exit:

    - ``text_disagreement``: edit distance in characters to the last exit's text, over that text's length;
    - ``clean_text_disagreement``: the same with the last exit's text on the clean version;
    - ``word_errors``, ``character_errors``: against the reference, over its words or characters, where it is known.

    Distances are divided by one character at least, and may exceed 1. For means over utterances, errors are summed
    before the division: `Traces.weights_by_loss`.

    Args:
        model: model with CTC exits.
        waveforms: (N_b,) each, at the backbone's sample rate.
        names: names of the utterances.
        groups: speaker of each utterance; None: the utterance itself.
        task: reference texts, and what else is computed. Scores of heads on units are named ``unit_entropy`` etc.
        condition: name of what was done to the utterances.
        reference: the last exit's texts on clean versions; None: those on the same input.
        score_stride: heads on units look at every ``score_stride``-th frame; CTC exits at all.
        batch_sec: as in `daisy.calibration.trace`, like ``kept``, ``kept_as`` and ``progress``.
        kept: likewise.
        kept_as: likewise.
        progress: likewise.

    Returns:
        The traces, whose layers are those of the exits, and the last exit's text of each utterance.

    Raises:
        CheckpointError: where the model lacks CTC exits or the heads asked for, or computes NaN or infinity.
        OutputError: where runs cannot be kept.
    """
    encoders, tokens = _make_encoders(model, task, score_stride), model.tokens
    assert tokens is not None
    exits = encoders[0].exits
    scores: dict[str, Tensor] = {}
    texts: list[list[str]] = [[]] * len(waveforms)
    for indices in make_batches(waveforms, model, batch_sec):
        runs = kept.get(kept_as or condition, indices) if kept is not None else None
        if runs is None:
            runs = _run(encoders, tokens.blank, [waveforms[i] for i in indices])
            check_numbers(runs, [names[i] for i in indices], exits)
            if kept is not None:
                kept.add(kept_as or condition, indices, runs)
            progress(len(indices))
        for name, values in runs.scores.items():
            scores.setdefault(name, torch.zeros(len(waveforms), len(exits)))[indices] = values
        for index, packed in zip(indices, runs.units, strict=True):
            texts[index] = [tokens.to_text(text) for text in unpack_texts(packed)]
    last = [of_exits[-1] for of_exits in texts]
    losses, weights = count_losses(texts, last if reference is None else reference, task.references)
    scores["final_agreement"] = (1 - losses["text_disagreement"]).clamp(min=0)
    traces = Traces(
        utterances=tuple(names),
        groups=tuple(groups or names),
        conditions=(condition,) * len(waveforms),
        scores=scores,
        losses=losses,
        weights=torch.ones(len(waveforms)),
        costs=torch.tensor(exits).float(),
        layers=exits,
        weights_by_loss=weights,
    )
    return traces, last


def choose_unit_scores(traces: Traces) -> Traces:
    """Return the same runs with unit heads' scores instead of the CTC exits'; scores that need no head stay."""
    prefix = UNIT_PREFIX
    scores = {name.removeprefix(prefix): values for name, values in traces.scores.items() if name.startswith(prefix)}
    stay = WITHOUT_HEADS | {"final_agreement"}
    return traces.with_scores(scores | {name: values for name, values in traces.scores.items() if name in stay})


def count_losses(
    texts: Sequence[Sequence[str]], wanted: Sequence[str], references: Sequence[str] | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Compare the texts of every exit with the last exit's, the clean version's and the reference.

    Args:
        texts: for each utterance the E texts of its exits.
        wanted: the last exit's text on the clean version of each utterance.
        references: reference text of each utterance; None if unknown.

    Returns:
        Losses (B, E) by name, and weights (B,) of the losses that are counted in words or characters.

    Raises:
        UsageError: where the number of references is not that of utterances.
    """
    losses = {
        "text_disagreement": _divide([[edit_distance(text, row[-1]) for text in row] for row in texts], _last(texts)),
        "clean_text_disagreement": _divide(_count(texts, wanted), wanted),
    }
    if references is None:
        return losses, {}
    if len(references) != len(texts):
        raise UsageError(f"{len(references)} references for {len(texts)} utterances")
    weights = {}
    said = [" ".join(reference.split()) for reference in references]
    by_words = [[text.split() for text in row] for row in texts]
    words = [reference.split() for reference in said]
    for name, of_exits, among in (("word_errors", by_words, words), ("character_errors", texts, said)):
        weights[name] = _sizes(among)
        losses[name] = _divide(_count(of_exits, among), among)
    return losses, weights


def _last(texts: Sequence[Sequence[str]]) -> list[str]:
    return [row[-1] for row in texts]


def _count(of_exits: Sequence[Sequence[Sequence[str]]], wanted: Sequence[Sequence[str]]) -> list[list[int]]:
    return [[edit_distance(text, goal) for text in row] for row, goal in zip(of_exits, wanted, strict=True)]


def _sizes(wanted: Sequence[Sequence[str]]) -> Tensor:
    return torch.tensor([float(max(len(goal), 1)) for goal in wanted])


def _divide(counts: list[list[int]], wanted: Sequence[Sequence[str]]) -> Tensor:
    return torch.tensor(counts).float() / _sizes(wanted)[:, None]


def _make_encoders(model: Model, task: TextTask, score_stride: int) -> list[EarlyExitEncoder]:
    """Make an encoder with the CTC exits and, if asked for, one with the heads on units."""
    ctc = model.exit_heads("ctc")
    assert isinstance(ctc, CTCHeads)
    names: Iterable[str] = available_scores(ctc) - {"posterior"} if task.scores is None else task.scores
    exits = ctc.config.layers
    encoders = [EarlyExitEncoder(model.backbone, ctc, Never(), keep="last", scores=names, exits=exits)]
    if task.with_units:
        units = model.exit_heads("units")
        names = available_scores(units) - WITHOUT_HEADS if units else {"entropy"}  # the encoder reports it as missing
        encoders.append(
            EarlyExitEncoder(
                model.backbone, units, Never(), keep="last", scores=names, exits=exits, score_stride=score_stride
            )
        )
    return encoders


def _run(encoders: Sequence[EarlyExitEncoder], blank: int, waveforms: list[Tensor]) -> BatchRuns:
    """Run a batch: the scores of all heads, and the texts of the CTC exits, which belong to the first encoder."""
    outputs: list[HeadOutputs] = []
    out = encoders[0](waveforms, observe=outputs.append)
    lengths = out.num_frames.tolist()
    paths = [exit_outputs.units.cpu().split(lengths) for exit_outputs in outputs]
    packed = [
        pack_texts([collapse(path.tolist(), blank) for path in of_exits]) for of_exits in zip(*paths, strict=True)
    ]
    scores = dict(out.scores)
    for encoder in encoders[1:]:
        scores |= {f"{UNIT_PREFIX}{name}": values for name, values in encoder(waveforms).scores.items()}
    return BatchRuns(scores=scores, losses={}, units=packed)


def pack_texts(texts: Sequence[Sequence[int]]) -> Tensor:
    """Put the tokens of an utterance's exits into one tensor, with `TEXT_END` after each exit's."""
    return torch.tensor([token for text in texts for token in (*text, TEXT_END)])


def unpack_texts(packed: Tensor) -> list[list[int]]:
    """Undo `pack_texts`."""
    texts: list[list[int]] = [[]]
    for token in packed.tolist():
        if token == TEXT_END:
            texts.append([])
        else:
            texts[-1].append(token)
    return texts[:-1]
