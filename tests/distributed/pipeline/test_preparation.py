"""Preparation of a model for runs: levels, times, and the references for the answers."""

import dataclasses

import pytest
import torch

from daisy.distributed.pipeline.fidelity import measure_fidelity
from daisy.distributed.pipeline.ledger import Record
from daisy.distributed.pipeline.preparation import make_measured_workload, measure_seconds, prepare
from daisy.distributed.pipeline.run_report import RunReport
from daisy.distributed.pipeline.tasks import Answer, Task
from daisy.errors import UsageError
from tests.conftest import POST_NORM, tiny_model
from tests.distributed.pipeline.test_stages import make_parts
from tests.recognition.conftest import tiny_recogniser

LENGTHS = (9000, 16000, 24000, 12000, 20000)


def make_speech():
    generator = torch.Generator().manual_seed(1)
    return [0.1 * torch.randn(count, generator=generator) for count in LENGTHS]


def run_all(model, prepared, level):
    """A report of all utterances, each run by the parts of the model at an exit level."""
    run = make_parts(model, prepared.settings.levels, heads=prepared.heads)
    records = []
    for number, waveform in enumerate(prepared.waveforms):
        left, _ = run(waveform, level)
        answer = Answer(number=number, attempt=1, exit_layer=left.exit_layer, worker="a", payload=left)
        records.append(Record(task=Task(number=number), answer=answer, admitted=0, answered=1, source="a"))
    return RunReport(
        seconds=1, records=records, workers={}, fidelity=[], work=[1.0] * len(LENGTHS), num_admitted=len(LENGTHS)
    )


def make_model(kind):
    """A model with heads on units at every layer, or a recogniser with exits at some."""
    if kind.startswith("conformer"):
        pytest.importorskip("torchaudio")
    model = tiny_model() if kind == "units" else tiny_recogniser(kind)
    model.final_head = None  # the full model's units are the last exit head's, as the answers' are
    return model


@pytest.mark.parametrize("kind", ["units", "hubert", "conformer"])
def test_levels_leave_where_the_full_runs_say_and_keep_what_they_say(kind):
    model, heads = make_model(kind), "units" if kind == "units" else "ctc"
    prepared = prepare(model, make_speech(), list("abcde"), heads=heads, policy="entropy", depths=(0.5, 0.9))
    exits = prepared.traces.layers
    assert exits == {"units": (1, 2, 3, 4), "hubert": (2, 3, 4), "conformer": (2, 4, 6)}[kind]
    workload = make_measured_workload(model, prepared, measure_seconds(model, prepared))
    assert (workload.num_layers, workload.num_levels) == (exits[-1], 2)
    assert workload.num_samples == LENGTHS
    assert [workload.work(i) for i in range(5)] == pytest.approx([count / 16000 for count in LENGTHS])
    assert all(len(row) == exits[-1] + 1 and min(row) > 0 for row in workload.seconds)
    for level in (0, 1):
        report = run_all(model, prepared, level)
        layers = [record.answer.exit_layer for record in report.records]
        assert layers == list(workload.exit_layers[level])
        assert set(layers) <= set(exits)
        kept = measure_fidelity(report, prepared, model.tokens)
        expected = [workload.fidelity[i][layer - 1] for i, layer in enumerate(layers)]
        assert kept == pytest.approx(expected, abs=1e-6)
    assert sum(workload.exit_layers[0]) > sum(workload.exit_layers[1])


def test_layers_without_an_exit_keep_what_the_exit_before_them_keeps():
    model = make_model("hubert")
    prepared = prepare(model, make_speech(), list("abcde"), heads="ctc", policy="entropy")
    workload = make_measured_workload(model, prepared, measure_seconds(model, prepared))
    disagreement = prepared.traces.losses["text_disagreement"].clamp(max=1)
    for i, row in enumerate(workload.fidelity):
        for layer in range(1, 5):
            passed = [place for place, exit_layer in enumerate(prepared.traces.layers) if exit_layer <= layer]
            expected = 1 - float(disagreement[i, passed[-1]]) if passed else 0.0
            assert row[layer - 1] == pytest.approx(expected)


def test_another_rate_is_refused():
    model = tiny_model(dataclasses.replace(POST_NORM, sample_rate=8000))
    with pytest.raises(UsageError, match="pipelines are for 16000 Hz; the model hears 8000 Hz"):
        prepare(model, make_speech(), list("abcde"))


def test_times_are_of_one_thread_and_of_the_cpu():
    model = tiny_model()
    prepared = prepare(model, make_speech()[:2], ["a", "b"], policy="entropy")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        measure_seconds(model, prepared)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    model.backbone.to("meta")
    with pytest.raises(UsageError, match="layer times .* are measured on the CPU"):
        measure_seconds(model, prepared)
