"""Long measurements continue where they were stopped."""

import argparse

import pytest

from benchmarks.distributed.steps import Step, add_options, run_steps
from benchmarks.distributed.systems import identify
from benchmarks.shared import results
from daisy.errors import DaisyError


@pytest.fixture
def measured(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    return []


def run(measured, *options, quick=False, **data):
    parser = argparse.ArgumentParser()
    add_options(parser, ("a", "b"))
    arguments = parser.parse_args(options)
    arguments.quick = quick

    def make(part, number):
        def measure():
            if number == 3:
                raise KeyboardInterrupt
            measured.append(number)
            yield {"value": number}
            yield {"value": number + 0.5}

        return Step(key={"part": part, "number": number}, measure=measure)

    steps = [make(part, number) for part, number in (("a", 1), ("a", 2), ("b", 3)) if part in arguments.parts]
    try:
        run_steps("trial", steps, arguments, **data)
    except KeyboardInterrupt:
        measured.append("stopped")


def test_what_is_measured_is_not_measured_again(measured):
    run(measured)
    assert measured == [1, 2, "stopped"]
    run(measured, "--parts", "a")
    assert measured == [1, 2, "stopped"]
    rows = results.read_result("trial")["rows"]
    assert [(row["part"], row["number"], row["value"]) for row in rows] == [
        ("a", 1, 1), ("a", 1, 1.5), ("a", 2, 2), ("a", 2, 2.5)]  # fmt: skip
    run(measured, "--parts", "a", "--again")
    assert measured == [1, 2, "stopped", 1, 2]
    assert len(results.read_result("trial")["rows"]) == 4


def test_rows_of_other_data_are_refused(measured):
    run(measured, "--parts", "a")
    with pytest.raises(DaisyError, match=r"was measured on other data \(40 clips, and these are 80 clips\)"):
        run(measured, data="80 clips", data_before="40 clips")
    run(measured, data="40 clips", data_before="40 clips", quick=True)
    run(measured, "--parts", "a", "--again", data="40 clips", data_before="40 clips")
    assert measured == [1, 2, 1, 2, "stopped", 1, 2]
    assert [row["data"] for row in results.read_result("trial")["rows"]] == ["40 clips"] * 4
    with pytest.raises(DaisyError, match="other data"):
        run(measured, data="80 clips", data_before="80 clips")


def test_what_identifies_recordings_is_their_number_and_names():
    first = identify(["a.flac", "b.flac"])
    assert first == identify(iter(["a.flac", "b.flac"]))
    assert first.startswith("2 recordings ")
    assert len({first, identify(["b.flac", "a.flac"]), identify(["a.flac", "c.flac"]), identify(["a.flac"])}) == 4


def test_nothing_is_begun_after_the_time(measured):
    run(measured, "--minutes", "0")
    assert measured == []
    run(measured, "--minutes", "0", "--parts", "a", quick=True)
    assert not list(results.RESULTS.iterdir())
