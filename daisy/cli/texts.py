"""Recognisers in calibrate and noise-curve: whether texts or units are compared, and with which references."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from daisy.errors import UsageError

if TYPE_CHECKING:
    from daisy.audio import Recording
    from daisy.calibration.text_tracing import TextTask
    from daisy.calibration.trace_conditions import Speech
    from daisy.checkpoints import Model

LossName = Literal["disagreement", "kl_nats", "text_disagreement", "word_errors", "character_errors"]
UNIT_LOSSES = ("disagreement", "kl_nats")
LABELLED_LOSSES = ("word_errors", "character_errors")
Reference = Annotated[
    Path | None,
    typer.Option(
        "--reference",
        help="Transcripts: a CSV file of path and text, fairseq's .ltr, a .trn, LibriSpeech's .trans.txt or a folder "
        "of these.",
    ),
]


def choose_loss(model: Model, loss: str | None, reference: Path | None, option: str, default: str) -> str:
    """Choose the loss: for a recogniser one of texts, unless one of units is requested.

    Args:
        model: model, a recogniser if it has CTC exits.
        loss: requested loss, if any.
        reference: file of `Reference`, if any.
        option: name of the option for the loss.
        default: loss for a recogniser with references.

    Raises:
        UsageError: if loss, model and references do not fit together.
    """
    if model.ctc is None or loss in UNIT_LOSSES:
        if reference is not None or loss not in (None, *UNIT_LOSSES):
            given = f"{option} {loss}" if loss not in (None, *UNIT_LOSSES) else "--reference"
            wanted = "a recogniser" if model.ctc is None else f"a loss of texts, and {option} {loss} is one of units"
            raise UsageError(f"{given} needs {wanted}")
        return loss or UNIT_LOSSES[0]
    if loss in LABELLED_LOSSES and reference is None:
        raise UsageError(f"{option} {loss} needs --reference, which tells what was said")
    return loss or (default if reference is not None else "text_disagreement")


def make_text_task(
    model: Model,
    speech: Speech,
    recordings: Sequence[Recording],
    reference: Path | None,
    root: Path,
    *,
    with_units: bool,
    policies: Collection[str],
) -> TextTask:
    """Create the task on which full runs of a recogniser are measured.

    Args:
        model: model with CTC exits.
        speech: speech to run.
        recordings: recordings that include the speech.
        reference: file of `Reference`, if any.
        root: folder to which paths in that file are relative.
        with_units: whether the heads on units are also evaluated.
        policies: requested policies; the posterior is computed only for its own.

    Raises:
        UsageError: if there are recordings without a transcript.
    """
    from daisy.audio.references import read_references, require_references
    from daisy.calibration.text_tracing import TextTask
    from daisy.policies.scores import available_scores

    scores = tuple(sorted(available_scores(model.ctc))) if "posterior" in policies else None
    if reference is None:
        return TextTask(with_units=with_units, scores=scores)
    texts = read_references(reference, recordings, root)
    by_label = {recording.label: text for recording, text in zip(recordings, texts, strict=True)}
    wanted = require_references(reference, [by_label[name] for name in speech.names], speech.names)
    assert model.tokens is not None
    folded = [model.tokens.fold(text) for text in wanted]
    return TextTask(references=folded, with_units=with_units, scores=scores)
