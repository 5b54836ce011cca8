"""Full runs on disk: a stopped program resumes, and its results are the same bit by bit."""

import dataclasses
import json

import pytest
import torch

from daisy import CheckpointError, OutputError, audio
from daisy.audio.conditions import CLEAN, Condition
from daisy.calibration import tracing
from daisy.calibration.kept_runs import BatchRuns, KeptRuns
from daisy.calibration.trace_conditions import Speech, open_kept_runs, run_conditions
from tests.conftest import POST_NORM, tiny_model

CONDITIONS = [CLEAN, Condition("white", 10.0), Condition("rain", 0.0), Condition("babble", 5.0)]
DIGEST = "0" * 64


@pytest.fixture(scope="module")
def speech():
    generator = torch.Generator().manual_seed(3)
    waveforms = [0.1 * torch.randn(4000 + 900 * (index % 7), generator=generator) for index in range(15)]
    names = [f"{index}.wav" for index in range(15)]
    return Speech(waveforms=waveforms, names=names, groups=names, failed={})


@pytest.fixture(scope="module")
def rain():
    return {"rain": audio.NoiseBank([torch.randn(9000, generator=torch.Generator().manual_seed(5))])}


def keep(path, speech, checkpoint=DIGEST, score_stride=1):
    return open_kept_runs(path, checkpoint, tiny_model(), speech, scores=None, score_stride=score_stride)


class Stopped(BaseException):
    pass


def run(speech, recorded, kept=None, conditions=CONDITIONS, stop_after=None, seed=4):
    """The traces, and how many runs were made at a time: three or so in a batch."""
    counts = []

    def count(number):
        counts.append(number)
        if stop_after is not None and sum(counts) >= stop_after:
            raise Stopped

    made = run_conditions(
        tiny_model(), speech, conditions, recorded, batch_sec=1.2, kept=kept, seed=seed, progress=count
    )
    return made, counts


def assert_same(traces, expected):
    assert (traces.utterances, traces.conditions) == (expected.utterances, expected.conditions)
    for name in ("scores", "losses"):
        tables, others = getattr(traces, name), getattr(expected, name)
        assert tables.keys() == others.keys()
        for column, values in tables.items():
            assert torch.equal(values.nan_to_num(nan=-1.0), others[column].nan_to_num(nan=-1.0)), column


def test_a_stopped_program_goes_on_to_the_same_bits(speech, rain, tmp_path):
    whole, counts = run(speech, rain)
    assert len(counts) > 4 * len(CONDITIONS)
    path = tmp_path / "runs"
    done = 0
    for stop_after in (4, 22, 50):  # within clean speech, white noise and babble
        with pytest.raises(Stopped), keep(path, speech) as kept:
            run(speech, rain, kept, stop_after=stop_after)
        with open(path, "a") as stream:
            stream.write('{"condition": "cut off by a cra')
        with keep(path, speech) as kept:
            assert stop_after <= len(kept) < stop_after + 6
            assert len(kept) > done
            done = len(kept)
    with keep(path, speech) as kept:
        traces, counts = run(speech, rain, kept)
    assert counts[0] == done
    assert sum(counts) == 15 * len(CONDITIONS)
    assert_same(traces, whole)
    with keep(path, speech) as kept:
        traces, counts = run(speech, rain, kept)
        assert counts == [15 * len(CONDITIONS)]
        assert_same(traces, whole)
        kept.discard()
    assert not list(tmp_path.iterdir())


def test_conditions_are_kept_one_by_one(speech, rain, tmp_path):
    """Another command with some conditions in common makes the others only; another seed is another noise."""
    path = tmp_path / "runs"
    with keep(path, speech) as kept:
        run(speech, rain, kept, conditions=[CLEAN])
    with keep(path, speech) as kept:
        traces, counts = run(speech, rain, kept, conditions=CONDITIONS[:3])
        assert (counts[0], sum(counts)) == (15, 45)
        assert_same(traces, run(speech, rain, conditions=CONDITIONS[:3])[0])
        assert run(speech, rain, kept, conditions=CONDITIONS[:3], seed=5)[1][0] == 15
        other = {"rain": audio.NoiseBank([torch.randn(9000)])}
        assert run(speech, other, kept, conditions=CONDITIONS[:3])[1][0] == 30


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"checkpoint": "1" * 64}, "checkpoint"),
        ({"score_stride": 2}, "score_stride"),
        ({"louder": True}, "recordings"),
        ({"checkpoint": "1" * 64, "score_stride": 2}, "checkpoint, score_stride"),
    ],
)
def test_runs_of_something_else_are_refused_and_stay(speech, rain, tmp_path, changed, named):
    path = tmp_path / "runs"
    with keep(path, speech) as kept:
        run(speech, rain, kept, conditions=[CLEAN])
    before = path.read_bytes()
    changed = dict(changed)
    louder = [2 * waveform for waveform in speech.waveforms]
    used = dataclasses.replace(speech, waveforms=louder) if changed.pop("louder", False) else speech
    message = rf"runs: holds full runs with other values of {named}; remove it to begin anew, or use another file$"
    with pytest.raises(OutputError, match=message):
        keep(path, used, **changed).__enter__()
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["runs"]


def test_runs_of_an_older_state_are_refused_where_they_lack_losses(speech, tmp_path):
    """Without a prediction head there were none: what stands for the full model is told, and so is what is measured."""
    path, model = tmp_path / "runs", tiny_model(POST_NORM)
    model.final_head = None
    settings = {"scores": None, "score_stride": 1}
    with open_kept_runs(path, DIGEST, model, speech, **settings) as kept:
        made, _ = tracing.trace(model, speech.waveforms, speech.names, kept=kept)
    with open_kept_runs(path, DIGEST, model, speech, **settings) as kept:
        again, _ = tracing.trace(model, speech.waveforms, speech.names, kept=kept)
    assert_same(again, made)
    header, *lines = path.read_text().splitlines()
    header = {name: value for name, value in json.loads(header).items() if name not in ("losses", "full_model")}
    lines = [json.dumps({**json.loads(line), "losses": {}, "units": []}) for line in lines]
    path.write_text("\n".join([json.dumps(header), *lines, ""]))
    with pytest.raises(OutputError, match="full runs with other values of full_model, losses; remove it to begin anew"):
        open_kept_runs(path, DIGEST, model, speech, **settings).__enter__()


@pytest.mark.parametrize("content", ["a,b\n1,2\n3", '{"kind": 1}', "[]\n", "\n", '"x"\n{}'])
def test_somebody_elses_file_is_left_as_it_is(speech, tmp_path, content):
    path = tmp_path / "table.csv"
    path.write_text(content)
    with pytest.raises(OutputError, match=r"table\.csv: is there already, and holds no full runs; use another file"):
        keep(path, speech).__enter__()
    assert path.read_text() == content


def test_a_file_in_use_and_a_damaged_one(speech, rain, tmp_path):
    path = tmp_path / "runs"
    with keep(path, speech) as kept:
        with pytest.raises(OutputError, match=r"runs: is in use by process \d+ on "):
            keep(path, speech).__enter__()
        run(speech, rain, kept, conditions=[CLEAN])
    header, first, *rest = path.read_text().splitlines()
    for wrong in ("no JSON", "{}", json.dumps({**json.loads(first), "scores": {"entropy": "float32 2x4 AAAA"}})):
        path.write_text("\n".join([header, wrong, *rest, ""]))
        with pytest.raises(OutputError, match=r"runs: damaged .*; remove it to begin anew"):
            keep(path, speech).__enter__()
    assert [file.name for file in tmp_path.iterdir()] == ["runs"]


def test_a_file_of_nothing_is_not_left(speech, tmp_path):
    with keep(tmp_path / "runs", speech):
        assert (tmp_path / "runs").is_file()
    assert not list(tmp_path.iterdir())


def test_kept_tensors_come_back_bit_by_bit(tmp_path):
    runs = BatchRuns(
        scores={"change": torch.tensor([[torch.nan, 0.1, -0.0], [torch.nan, 1e-45, 3e38]])},
        losses={},
        units=[torch.tensor([5, 0, 70000]), torch.tensor([1])],
    )
    with KeptRuns(tmp_path / "runs", {}) as kept:
        kept.add("clean", [7, 2], runs)
    with KeptRuns(tmp_path / "runs", {}) as kept:
        back = kept.get("clean", [7, 2])
        assert kept.get("clean", [2, 7]) is None
        assert kept.get("white", [7, 2]) is None
    assert back.scores["change"].numpy().tobytes() == runs.scores["change"].numpy().tobytes()
    assert [units.tolist() for units in back.units] == [[5, 0, 70000], [1]]
    assert back.units[0].dtype == torch.int64


def test_runs_that_are_no_numbers_are_refused(speech):
    model = tiny_model(POST_NORM)
    with torch.no_grad():
        model.backbone.encoder.transformer.layers[2].feed_forward.output_dense.bias[0] = torch.nan
    with pytest.raises(CheckpointError, match=r"^\d+\.wav: \w+ is nan at layer 3: the model's weights are damaged"):
        tracing.trace(model, speech.waveforms, speech.names)
