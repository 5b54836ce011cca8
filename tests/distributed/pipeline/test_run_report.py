"""Statistics of a run."""

import pytest

from daisy.distributed.pipeline.ledger import Record
from daisy.distributed.pipeline.presentation import describe, make_sections
from daisy.distributed.pipeline.run_report import RunReport, WorkerReport
from daisy.distributed.pipeline.tasks import Answer, Task


def test_incarnations_are_summed_up():
    first = WorkerReport(busy_sec=1.5, num_computed=3, num_exits=1, num_sent=2, bytes_sent=700, num_deaths=1)
    second = WorkerReport(busy_sec=0.25, num_computed=4, num_exits=4, events=["a stage"])
    expected = WorkerReport(
        busy_sec=1.75, num_computed=7, num_exits=5, num_sent=2, bytes_sent=700, num_deaths=1, events=["a stage"]
    )
    assert first.add(second) == expected


def make_report(answered, fidelity=()):
    """Tasks that were answered after two seconds each."""
    records = [
        Record(
            task=Task(number=number, level=number % 2),
            answer=Answer(number=number, attempt=1, exit_layer=3, worker="a"),
            admitted=when - 2,
            answered=when,
            source="a",
        )
        for number, when in enumerate(answered)
    ]
    seconds = answered[-1] - (answered[0] - 2) if answered else 0.0
    return RunReport(
        seconds=seconds, records=records, workers={}, fidelity=list(fidelity), work=[1.0] * len(records), num_admitted=9
    )


def test_windows_hold_every_answer_and_the_last_is_as_long_as_the_run():
    report = make_report([3.0, 9.0, 10.0, 11.0, 19.0, 24.0], fidelity=[1, 1, 0.5, 0.5, 0.5, 0])
    windows = report.windows(10.0)
    assert [window["begin_sec"] for window in windows] == [0, 10, 20]
    assert [window["throughput"] for window in windows] == pytest.approx([0.2, 0.3, 0.25])  # the last: 1 in 4 s
    assert [window["median_latency_sec"] for window in windows] == pytest.approx([2, 2, 2])
    assert [window["fidelity"] for window in windows] == pytest.approx([1, 0.5, 0])
    assert [window["mean_level"] for window in windows] == pytest.approx([0.5, 1 / 3, 1])


def test_a_last_answer_at_the_end_of_a_window_is_in_it():
    assert [window["throughput"] for window in make_report([5.0, 10.0, 20.0]).windows(10.0)] == [0.1, 0.2]
    assert make_report([]).windows(10.0)[0]["throughput"] == 0


def test_a_run_that_ended_before_its_first_answer_has_a_page():
    pytest.importorskip("matplotlib")
    report = make_report([])
    report.error = "layers 1-3 were held by a only, which died"
    assert report.to_json()["error"] == report.error
    assert describe(report)[-1] == f"the run ended early: {report.error}"
    (section, *_) = make_sections(report)
    assert len(section.figures) == 2
