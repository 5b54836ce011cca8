"""daisy train-heads: runs that go on, settings that follow the updates, and requests that are refused."""

import json

import pytest
import torch

import daisy
from tests.cli.running import run


def test_the_command_trains_and_goes_on(corpus, model, tmp_path):
    daisy.save(model, tmp_path / "hubert.safetensors")
    arguments = (
        *("train-heads", corpus / "train.tsv", "-c", tmp_path / "hubert.safetensors", "-o", tmp_path / "out"),
        *("--labels", corpus, "--valid", corpus / "valid.tsv", "--updates", "6", "--warmup", "2"),
        *("--max-tokens", "30000", "--save-interval", "3"),
    )
    result = run(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert "valid: loss " in result.stdout
    assert "heads after 6 updates" in result.stdout
    assert "6 of 6 updates were made before" in run(*arguments).stdout
    trained = daisy.load(tmp_path / "out" / "model.safetensors")
    assert (trained.heads.config.num_units, trained.policies) == (9, {})
    refused = run(*arguments, "--lr", "0.1")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "holds a run with another lr; use another --out, or --overwrite" in refused.stderr


def test_few_updates_need_no_other_settings(corpus, model, tmp_path):
    """Twenty updates warm up over two; event files begin again with the run that they are of."""
    daisy.save(model, tmp_path / "hubert.safetensors")
    for updates in (20, 10):
        done = run(
            *("train-heads", corpus / "train.tsv", "-c", tmp_path / "hubert.safetensors", "-o", tmp_path / "out"),
            *("--labels", corpus, "--max-tokens", "30000", "--log-interval", "1", "--updates", updates, "--overwrite"),
        )
        assert (done.returncode, done.stderr) == (0, "")
        log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
        assert log[0]["lr"] == pytest.approx(0.002 * 10 / updates)
        assert [line["update"] for line in log] == list(range(1, updates + 1))
    pytest.importorskip("tensorboardX", reason="event files need tensorboardX")
    assert len(list((tmp_path / "out" / "tensorboard" / "train").iterdir())) == 1


def test_a_gpu_that_is_not_there_is_said_under_torchrun_too(corpus, model, tmp_path, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    daisy.save(model, tmp_path / "hubert.safetensors")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = run("train-heads", corpus / "train.tsv", "-c", tmp_path / "hubert.safetensors", "-o", tmp_path / "out",
                  "--device", "cuda")  # fmt: skip
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    refused = run("train-heads", corpus / "train.tsv", "-c", tmp_path / "hubert.safetensors", "-o", tmp_path / "out")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "WORLD_SIZE is 2, and its processes cannot join" in refused.stderr
