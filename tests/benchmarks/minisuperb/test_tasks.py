from pathlib import Path

import numpy
import pytest
import soundfile
import yaml

from benchmarks.minisuperb import tasks
from daisy.errors import OutputError

LOGS = {
    "asr": ("test-20 loss: 1.5\ntest-20 uer: 31.25\ntest-20 wer: 80.5\n", "test-20", [0.3125, 0.805]),
    "sid": ("[Runner] - x\ntest acc: 0.71875\n", "test", [0.71875]),
    "se": (
        "Average si_sdr of 44 utts is -2.0539\nAverage stoi of 44 utts is 0.8271\nAverage pesq of 44 utts is 1.4701\n",
        "test",
        [1.4701, 0.8271],
    ),
    "ss": ("Average si_sdr of 40 utts: -0.3789\n", "test", [-0.3789]),
    "ks": ("dev acc: 0.9\ntest acc: 0.5\ntest acc: 0.25\n", "test", [0.25]),
    "ic": ("test acc: 1.0\n", "test", [1.0]),
    "pr": ("test loss: 3\ntest per: 0.0541\n", "test", [0.0541]),
}


@pytest.mark.parametrize("name", LOGS)
def test_metrics_are_read_from_what_s3prl_prints(name):
    text, split, expected = LOGS[name]
    task = tasks.TASKS[name]
    assert [metric.read_last(text, split, Path("log")) for metric in task.metrics] == pytest.approx(expected)


def test_a_log_without_a_result_is_refused():
    metric = tasks.TASKS["ks"].metrics[0]
    with pytest.raises(OutputError, match="evaluate.log: no line with accuracy of test"):
        metric.read_last("dev acc: 0.9\nlatest acc: 0.5\n", "test", Path("evaluate.log"))


def test_slots_are_scored_one_by_one(tmp_path):
    (tmp_path / "test_predict.csv").write_text("a,latte,none,none\nb,mocha,large,none\n")
    with pytest.raises(OutputError, match="no predictions of test to score"):
        tasks.score_slots(tmp_path, "test")
    (tmp_path / "test_truth.csv").write_text("a,latte,small,none\nb,latte,large,dark roast\n")
    assert tasks.score_slots(tmp_path, "test") == {"slot_accuracy": 0.5}


@pytest.mark.parametrize("published", [False, True])
def test_every_task_has_its_configuration(published):
    for name in tasks.TASKS if published else tasks.AT_HAND:
        config = yaml.safe_load(tasks.read_configuration(tasks.TASKS[name], Path("/corpora") / name, published))
        runner = config["runner"]
        assert runner["total_steps"] % runner["eval_step"] == runner["total_steps"] % runner["save_step"] == 0
        assert f"/corpora/{name}" in str(config)
        assert "{corpus}" not in str(config)


def test_test_sets_are_pointed_at():
    split, override = tasks.TASKS["sid"].locate_test_set("10", Path("/c"), Path("/runs/x"))
    assert (split, override) == (
        "test",
        "args.expdir='/runs/x',,config.downstream_expert.datarc.file_path='/c/10',,"
        "config.downstream_expert.datarc.meta_data='/c/10/split.txt'",
    )
    assert tasks.TASKS["asr"].locate_test_set("0", Path("/c"), Path("/x")) == ("test-0", "args.expdir='/x'")
    assert tasks.TASKS["asr"].locate_test_set(None, Path("/c"), Path("/x")) == ("test-clean", "args.expdir='/x'")


def test_the_best_checkpoint_or_the_last(tmp_path):
    choose = tasks.choose_checkpoint
    with pytest.raises(OutputError, match="did not reach step 20"):
        choose(tmp_path, 20, True)
    for name in ("states-20.ckpt", "dev-clean-best.ckpt"):
        (tmp_path / name).touch()
    assert choose(tmp_path, 20, True).name == "dev-clean-best.ckpt"
    assert choose(tmp_path, 20, False).name == "states-20.ckpt"
    (tmp_path / "dev-clean-best.ckpt").unlink()
    assert choose(tmp_path, 20, True).name == "states-20.ckpt"


@pytest.mark.filterwarnings("ignore")
def test_keywords_are_read_3_db_softer(tmp_path):
    expert = pytest.importorskip("benchmarks.minisuperb.downstream.keywords.expert", reason="needs s3prl")
    soundfile.write(tmp_path / "a.wav", numpy.full(160, 0.5), 16000)
    waveform, rate = expert.read_softer(
        str(tmp_path / "a.wav"), [["channels", "1"], ["rate", "16000"], ["gain", "-3.0"]]
    )
    assert (tuple(waveform.shape), rate) == ((1, 160), 16000)
    assert waveform.unique().tolist() == pytest.approx([0.5 * 10 ** (-3 / 20)], abs=1e-4)
