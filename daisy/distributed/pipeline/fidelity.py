"""Measure how much of the full model's output the answers keep."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from daisy.distributed.pipeline.preparation import Prepared
from daisy.distributed.pipeline.run_report import RunReport
from daisy.distributed.pipeline.stages import Left
from daisy.models import Tokens
from daisy.policies.texts import collapse, edit_distance


def measure_fidelity(report: RunReport, prepared: Prepared, tokens: Tokens | None = None) -> list[float]:
    """Compare each answer with the full model's: by units, or by texts if CTC exits decided.

    Args:
        report: report of a run, whose n-th task was waveform n modulo their number.
        prepared: utterances of that run.
        tokens: tokens of a recogniser.

    Returns:
        For each record, the share of frames whose units agree; or 1 minus the edit distance to the last exit's text
        divided by that text's number of characters, at least 0.
    """
    if prepared.heads == "units":
        return compare_units(report, prepared.units, prepared.settings.score_stride)
    assert tokens is not None
    return compare_texts(report, prepared.texts, tokens)


def compare_units(report: RunReport, units: Sequence[Tensor], score_stride: int = 1) -> list[float]:
    """Like `measure_fidelity`, with units (T_b,), of which heads looked at every ``score_stride``-th."""
    shares = []
    for record in report.records:
        left: Left = record.answer.payload
        wanted = units[record.answer.number % len(units)][::score_stride].numpy()
        assert left.units is not None
        shares.append(float((left.units == wanted).mean()))
    return shares


def compare_texts(report: RunReport, texts: Sequence[str], tokens: Tokens) -> list[float]:
    """Like `measure_fidelity`, with the last exit's texts."""
    shares = []
    for record in report.records:
        left: Left = record.answer.payload
        wanted = texts[record.answer.number % len(texts)]
        assert left.units is not None
        written = tokens.to_text(collapse(left.units.tolist(), tokens.blank))
        shares.append(max(0.0, 1 - edit_distance(written, wanted) / max(len(wanted), 1)))
    return shares
