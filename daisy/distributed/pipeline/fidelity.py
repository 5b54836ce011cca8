"""What answers keep of the full model's output."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from daisy.distributed.pipeline.run_report import RunReport
from daisy.distributed.pipeline.stages import Left


def measure_fidelity(report: RunReport, units: Sequence[Tensor], score_stride: int = 1) -> list[float]:
    """Compare each answer's units with the full model's.

    Args:
        report: of a run; its n-th task was waveform n modulo their number.
        units: (T_b,) of the full model on each waveform (`daisy.calibration.trace`).
        score_stride: heads look at every ``score_stride``-th frame.

    Returns:
        Shares of frames that agree, of each record.
    """
    shares = []
    for record in report.records:
        left: Left = record.answer.payload
        wanted = units[record.answer.number % len(units)][::score_stride].numpy()
        assert left.units is not None
        shares.append(float((left.units == wanted).mean()))
    return shares
