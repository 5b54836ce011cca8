"""Full runs of a recogniser: every score of every exit, its text, and how wrong that is."""

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
"""Before the scores of heads on units, which stand beside those of the CTC exits."""
TEXT_END = -1
"""After each exit's tokens, where the texts of an utterance are kept as one tensor."""


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """What full runs of a recogniser are measured on."""

    references: Sequence[str] | None = None
    """What was said in each utterance, in the tokens' case; None where nobody knows."""
    with_units: bool = False
    """Whether the scores of the heads on units are computed too, at the CTC exits' layers."""
    scores: tuple[str, ...] | None = None
    """Of the CTC exits; where None all but the posterior, which takes a beam search at every exit."""


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
    """Run every layer of a recogniser, note every exit's scores and greedily decoded text, and count errors.

    Losses, at each exit:

    - ``text_disagreement``: edit distance in characters to the last exit's text, over that text's characters;
    - ``clean_text_disagreement``: the same, to the last exit's text on the clean version;
    - ``word_errors``, ``character_errors``: against what was said, over its words and characters, where that is known.

    Distances are over one character at least, and may be above 1. In means over utterances errors are summed before
    they are divided: `Traces.weights_by_loss`.

    Args:
        model: with CTC exits.
        waveforms: (N_b,) each, at the backbone's rate.
        names: of the utterances.
        groups: the speaker of each; the utterance itself where None.
        task: what was said, and what else is computed. Scores of heads on units are called ``unit_entropy`` and so on.
        condition: what was done to the utterances.
        reference: the last exit's texts on clean versions; those on the same input where None.
        score_stride: heads on units look at every ``score_stride``-th frame; CTC exits at all.
        batch_sec: as of `daisy.calibration.trace`, and so ``kept``, ``kept_as`` and ``progress``.
        kept: likewise.
        kept_as: likewise.
        progress: likewise.

    Returns:
        The traces, whose layers are those of the exits, and the last exit's text of each utterance.

    Raises:
        CheckpointError: where the model has no CTC exits, not the heads asked for, or computes what is no number.
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
    """Return the same runs with the scores of the heads on units in place of the CTC exits'; those of no head stay."""
    prefix = UNIT_PREFIX
    scores = {name.removeprefix(prefix): values for name, values in traces.scores.items() if name.startswith(prefix)}
    stay = WITHOUT_HEADS | {"final_agreement"}
    return traces.with_scores(scores | {name: values for name, values in traces.scores.items() if name in stay})


def count_losses(
    texts: Sequence[Sequence[str]], wanted: Sequence[str], references: Sequence[str] | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Compare the texts of every exit with the last exit's, the wanted ones and what was said.

    Args:
        texts: of each utterance, those of its exits; E each.
        wanted: the last exit's text of the clean version of each.
        references: what was said in each; None where nobody knows.

    Returns:
        Losses (B, E) by name, and weights (B,) of those that are counted among words or characters.

    Raises:
        UsageError: where there is not one reference for each utterance.
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
    """One with the CTC exits, and where they are asked for one with the heads on units."""
    ctc = model.exit_heads("ctc")
    assert isinstance(ctc, CTCHeads)
    names: Iterable[str] = available_scores(ctc) - {"posterior"} if task.scores is None else task.scores
    exits = ctc.config.layers
    encoders = [EarlyExitEncoder(model.backbone, ctc, Never(), keep="last", scores=names, exits=exits)]
    if task.with_units:
        units = model.exit_heads("units")
        names = available_scores(units) - WITHOUT_HEADS if units else {"entropy"}  # which the encoder then misses
        encoders.append(
            EarlyExitEncoder(
                model.backbone, units, Never(), keep="last", scores=names, exits=exits, score_stride=score_stride
            )
        )
    return encoders


def _run(encoders: Sequence[EarlyExitEncoder], blank: int, waveforms: list[Tensor]) -> BatchRuns:
    """Run a batch: the scores of all heads, and the texts of the CTC exits, which are the first encoder's."""
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
    """Put the tokens of an utterance's exits into one tensor, `TEXT_END` after each exit's."""
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
