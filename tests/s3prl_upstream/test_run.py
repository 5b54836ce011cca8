"""s3prl's runner from end to end; losses are compared bit by bit through the weights that they lead to."""

import ast
import builtins
import importlib.util
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import soundfile
import torch

import daisy
from daisy import audio
from tests.s3prl_upstream.conftest import LAYERS, begin_anew, lines, losses, runs, states, weights

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_cache_changes_no_loss(train, tmp_path):
    cache = tmp_path / "cache"
    train(tmp_path / "without", "-o", "config.runner.log_step=1")
    for name in ("filling", "full"):
        train(tmp_path / name, "-o", "config.runner.log_step=1", "--cache", cache, "--cache-dtype", "float32")
        assert torch.equal(weights(tmp_path / name), weights(tmp_path / "without"))
        assert losses(tmp_path / name) == losses(tmp_path / "without")
    train(tmp_path / "half", "-o", "config.runner.log_step=1", "--cache", cache)
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "without"), rel=1e-3)
    assert len(losses(tmp_path / "half")) == 6

    def exits(folder):
        return {(row["split"], row["utterance"]): (row["exit_layer"], row["scores"]) for row in lines(folder)}

    assert exits(tmp_path / "full") == exits(tmp_path / "without") == exits(tmp_path / "half")
    (filling,), (full,) = runs(tmp_path / "filling"), runs(tmp_path / "full")
    assert filling["splits"]["train"]["utterances_cached"] == 12  # the second of two epochs
    assert full["splits"]["train"]["utterances_cached"] == full["splits"]["train"]["utterances_run"] == 24
    assert full["splits"]["train"]["computed_sec"] == 0
    assert full["splits"]["train"]["macs_share"] == filling["splits"]["train"]["macs_share"]


def test_policies_that_share_a_full_recording_train_as_on_their_own(train, tmp_path):
    both = ("-o", "config.runner.log_step=1", "--featurizer", "dynamic", "--cache-dtype", "float32")
    for name, threshold in (("deep", [1.9, 1.5, 2.0, 0.0]), ("shallow", [1.93, 1.58, 2.09, 3.0])):
        policy = tmp_path / f"{name}.json"
        policy.write_text(json.dumps({"name": "entropy", "threshold": threshold}))
        train(tmp_path / f"{name}-own", *both, "-g", policy, "--cache", tmp_path / "own")
        train(tmp_path / name, *both, "-g", policy, "--cache", tmp_path / "full", "--cache-full")
        assert losses(tmp_path / name) == losses(tmp_path / f"{name}-own")
        (totals,) = (run["splits"]["train"] for run in runs(tmp_path / name))
        (separate,) = (run["splits"]["train"] for run in runs(tmp_path / f"{name}-own"))
        assert totals["exits"] == separate["exits"]
        assert totals["utterances_cached"] == (12 if name == "deep" else 24)
    assert losses(tmp_path / "deep") != losses(tmp_path / "shallow")


def test_the_log_has_each_utterance_once_and_the_summary_adds_it_up(train, tmp_path, checkpoint, policy, hub, fluent):
    train(tmp_path)
    rows = lines(tmp_path)
    assert sorted(row["utterance"] for row in rows if row["split"] == "train") == sorted(f"train{i}" for i in range(12))
    assert sorted(row["utterance"] for row in rows if row["split"] == "dev") == [f"valid{i}" for i in range(4)]
    (run,) = runs(tmp_path)
    exits = [row["exit_layer"] for row in rows if row["split"] == "train"]
    totals = run["splits"]["train"]
    assert totals["exits"] == [exits.count(layer) for layer in range(1, LAYERS + 1)]
    assert totals["mean_exit_layer"] == pytest.approx(sum(exits) / 12)
    assert totals["depth"] == pytest.approx(sum(exits) / 12 / LAYERS)
    assert 0 < totals["macs_share"] < 1
    assert totals["utterances_run"] == 24
    assert totals["upstream_sec"] > 0
    assert (run["policy"]["name"], run["featurizer"], run["mode"]) == ("random", "stock", "train")
    encoder = hub.daisy_local(checkpoint, policy).encoder
    row = next(row for row in rows if row["utterance"] == "train5")
    out = encoder([audio.read(fluent.parent / "wavs" / "train5.wav")])
    assert row["exit_layer"] == int(out.exit_layer)
    assert row["scores"]["draw"] == pytest.approx(out.scores["draw"][0, : row["exit_layer"]].tolist(), abs=1e-6)


def test_a_run_does_not_slow_down_the_next(train, tmp_path):
    """s3prl wraps isinstance at each start; wrappers around wrappers double its time."""
    before = builtins.isinstance
    train(tmp_path / "run")
    assert builtins.isinstance is before


def test_evaluation_takes_the_featurizer_from_the_checkpoint(train, launch, tmp_path):
    train(tmp_path, "--featurizer", "dynamic-s", "--upstream_feature_normalize")
    assert states(tmp_path)["Featurizer"]["weights"].shape == (LAYERS, LAYERS + 1)
    assert states(tmp_path)["Featurizer"]["weights"].abs().sum() > 0
    before = [line for line in (tmp_path / "log.log").read_text().splitlines() if line.startswith("dev at step 6")]
    launch("-m", "evaluate", "-e", tmp_path / "states-6.ckpt", "-t", "dev")
    launch("-m", "evaluate", "-e", tmp_path / "states-6.ckpt", "-t", "test")
    after = (tmp_path / "log.log").read_text().splitlines()
    assert before[0].split(": ")[1] == next(line for line in after if "dev at step 0" in line).split(": ")[1]
    of_training, dev, test = runs(tmp_path)
    assert dev["splits"]["dev"]["exits"] == of_training["splits"]["dev"]["exits"]
    assert dev["featurizer"] == test["featurizer"] == "dynamic-s"
    assert list(test["splits"]) == ["test"]
    with pytest.raises(daisy.DaisyError, match="--featurizer dynamic: the checkpoint was trained with dynamic-s"):
        launch("-m", "evaluate", "-e", tmp_path / "states-6.ckpt", "--featurizer", "dynamic")


def test_a_run_killed_while_the_cache_fills_goes_on(train, hub, tmp_path, monkeypatch):
    """Killed without warning; what was written is kept and whole, and the training ends where an unbroken one does."""
    from s3prl_upstream.cache import StateCache

    more = ("--cache", tmp_path / "cache", "--cache-dtype", "float32")
    train(tmp_path / "unbroken")
    write = StateCache._write
    monkeypatch.setattr(StateCache, "_write", lambda self, utterance: (time.sleep(0.1), write(self, utterance)))
    child = multiprocessing.get_context("fork").Process(target=train, args=(tmp_path / "run", *more))
    child.start()
    stored = lambda: list((tmp_path / "cache").rglob("*.safetensors"))  # noqa: E731
    deadline = time.monotonic() + 60
    while len(stored()) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    monkeypatch.setattr(StateCache, "_write", write)
    before = len(stored())
    assert 6 <= before < 16
    train(tmp_path / "run", *more)
    totals = runs(tmp_path / "run")[-1]["splits"]
    assert sum(totals[split]["utterances_run"] - totals[split]["utterances_cached"] for split in totals) == 16 - before
    assert torch.equal(weights(tmp_path / "run"), weights(tmp_path / "unbroken"))


def test_a_killed_run_goes_on_from_its_checkpoint(train, hub, tmp_path):
    folder = tmp_path / "run"
    endless = "config.runner.total_steps=100000,,config.runner.save_step=20"  # so that it is not killed while it saves
    child = multiprocessing.get_context("fork").Process(target=train, args=(folder, "-o", endless))
    child.start()
    deadline = time.monotonic() + 60
    while not (folder / "states-20.ckpt").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    train(folder, "-a", "-o", "config.runner.total_steps=23,,config.runner.save_step=3")
    assert states(folder, "states-21.ckpt")["Step"] == 21
    assert [len(run["splits"]) > 0 for run in runs(folder)] == [True, True]
    assert {row["run"] for row in lines(folder)} == {run["run"] for run in runs(folder)}


def test_fine_tuning_runs_all_layers_and_moves_the_upstream(train, launch, checkpoint, policy, fluent, tmp_path):
    train(tmp_path, "-f", "-s", "last_hidden_state")
    tuned, source = states(tmp_path)["Upstream"], daisy.load(checkpoint).backbone.state_dict()
    moved = {key for key in source if not torch.equal(source[key], tuned[f"encoder.backbone.{key}"])}
    assert {f"encoder.transformer.layers.{i}.feed_forward.output_dense.weight" for i in range(LAYERS)} <= moved
    assert not [key for key in moved if key.startswith("feature_extractor")]
    launch("-m", "evaluate", "-e", tmp_path / "states-6.ckpt", "-t", "dev")
    launch("-m", "evaluate", "-e", tmp_path / "states-6.ckpt", "-t", "dev", "-o", "args.upstream_trainable=False")
    tuning, after, with_exits = runs(tmp_path)
    assert tuning["trainable"]
    for run, split in ((tuning, "train"), (tuning, "dev"), (after, "dev")):
        assert run["splits"][split]["mean_exit_layer"] == LAYERS
    assert with_exits["splits"]["dev"]["mean_exit_layer"] < LAYERS
    known = ("-u", "daisy_local", "-k", checkpoint, "-g", policy, "-d", "fluent_commands", "-c", fluent)
    again = ("-i", tmp_path / "states-6.ckpt", "-s", "last_hidden_state", "-p", tmp_path / "again", "-t", "dev")
    launch("-m", "evaluate", *known, *again)  # without -f
    (run,) = runs(tmp_path / "again")
    assert run["splits"]["dev"]["mean_exit_layer"] == LAYERS
    with pytest.raises(daisy.DaisyError, match="--cache is for a frozen upstream"):
        train(tmp_path / "other", "-f", "--cache", tmp_path / "cache")


def test_downstream_training_on_our_upstream_is_that_on_s3prls(train, launch, fluent, tmp_path):
    """Without exits, step by step, in one launcher: the same downstream weights to begin with, the same losses."""
    pytest.importorskip("fairseq", reason="s3prl converts with fairseq")
    from s3prl.upstream.hubert.convert import load_and_convert_fairseq_ckpt

    from fairseq_plugins.export import make_stock_checkpoint
    from tests.conftest import tiny_model

    torch.save(make_stock_checkpoint(tiny_model()), tmp_path / "fairseq.pt")
    load_and_convert_fairseq_ckpt(str(tmp_path / "fairseq.pt"), str(tmp_path / "converted.pt"))
    # One utterance a batch: s3prl's states depend on the batch, through group norm and padding.
    log = "config.runner.log_step=1,,config.downstream_expert.datarc.train_batch_size=1"
    train(tmp_path / "ours", "-g", "never", "-o", log)
    theirs = ("-u", "hubert_local", "-k", tmp_path / "converted.pt", "-d", "fluent_commands", "-c", fluent)
    launch("-m", "train", *theirs, "-p", tmp_path / "theirs", "-o", log)
    assert losses(tmp_path / "ours") == pytest.approx(losses(tmp_path / "theirs"), rel=1e-4)
    assert len(losses(tmp_path / "ours")) == 6
    assert not (tmp_path / "theirs" / "exits.jsonl").exists()


def test_utterances_of_one_name_are_all_logged(launch, checkpoint, policy, fluent, tmp_path):
    """s3prl calls an utterance of this task by its file's name, without its folder."""
    (tmp_path / "wavs").mkdir()
    (tmp_path / "data").mkdir()
    for split in ("train", "valid", "test"):
        text = (fluent.parent / "data" / f"{split}_data.csv").read_text()
        for i, line in enumerate(text.splitlines()[1:]):
            path = line.split(",")[1]
            same = f"wavs/{i}/{split}.wav"
            (tmp_path / same).parent.mkdir(exist_ok=True)
            (tmp_path / same).write_bytes((fluent.parent / path).read_bytes())
            text = text.replace(path + ",", same + ",")
        (tmp_path / "data" / f"{split}_data.csv").write_text(text)
    known = ("-u", "daisy_local", "-k", checkpoint, "-g", policy, "-d", "fluent_commands", "-c", fluent)
    data = f"config.downstream_expert.datarc.file_path={tmp_path}"
    launch("-m", "train", *known, "-p", tmp_path / "run", "-o", data)
    (run,) = runs(tmp_path / "run")
    assert run["splits"]["train"]["utterances"] == 12
    assert len({row["audio"] for row in lines(tmp_path / "run") if row["utterance"] == "train"}) == 12
    assert run["splits"]["dev"]["utterances"] == 4
    assert (run["override"], run["data"]["file_path"]) == (data, str(tmp_path))


def test_a_cache_is_not_read_for_weights_that_were_trained_since(train, launch, tmp_path):
    cache = ("--cache", tmp_path / "cache")
    train(tmp_path / "frozen", *cache)
    train(tmp_path / "tuned", "-f")
    with_exits = ("-o", "args.upstream_trainable=False")
    launch("-m", "evaluate", "-e", tmp_path / "tuned" / "states-6.ckpt", "-t", "dev", *with_exits, *cache)
    (frozen,), (_, tuned) = runs(tmp_path / "frozen"), runs(tmp_path / "tuned")
    assert tuned["splits"]["dev"]["utterances_cached"] == 0
    assert tuned["checkpoint_digest"] != frozen["checkpoint_digest"]
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_weights_taken_with_i_bring_their_featurizer(train, checkpoint, policy, tmp_path):
    train(tmp_path / "first", "--featurizer", "dynamic-s")
    begun = ("-i", tmp_path / "first" / "states-6.ckpt", "-o", "config.runner.total_steps=9")
    train(tmp_path / "second", *begun)
    assert states(tmp_path / "second", "states-9.ckpt")["Featurizer"]["weights"].shape == (LAYERS, LAYERS + 1)
    assert runs(tmp_path / "second")[0]["featurizer"] == "dynamic-s"
    with pytest.raises(daisy.DaisyError, match="-i gone.ckpt: No such file"):
        train(tmp_path / "third", "-i", "gone.ckpt")


def test_a_line_that_a_kill_cut_off_is_dropped(train, tmp_path):
    train(tmp_path)
    before = lines(tmp_path)
    with open(tmp_path / "exits.jsonl", "a") as stream:
        stream.write('{"run": "2026')
    begin_anew(tmp_path)
    train(tmp_path)
    assert lines(tmp_path)[: len(before)] == before
    assert len(lines(tmp_path)) == 2 * len(before)


@pytest.mark.parametrize("task", ["asr", "fluent_commands", "voxceleb1", "ctc", "diarization", "sv_voxceleb1"])
def test_what_the_tasks_call_their_utterances(hub, task):
    """Read from their source: some need packages that are not here."""
    from s3prl_upstream.runner import NAMES

    source = importlib.util.find_spec(f"s3prl.downstream.{task}.expert").origin
    functions = (node for node in ast.walk(ast.parse(Path(source).read_text())) if isinstance(node, ast.FunctionDef))
    forward = next(node for node in functions if node.name == "forward")
    told = [argument.arg for argument in forward.args.args if NAMES.fullmatch(argument.arg)]
    assert told == [{"diarization": "rec_id", "sv_voxceleb1": "utter_idx"}.get(task, "filenames")]


def test_a_command_line_of_s3prls_documentation(launch, checkpoint, fluent, tmp_path, monkeypatch, capsys):
    """Of its SUPERB page, with -u and -k changed, in a folder with its configuration; no CUDA device is no reason."""
    from s3prl_upstream import run_downstream

    folder = tmp_path / "downstream" / "fluent_commands"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(fluent.read_text())
    monkeypatch.chdir(tmp_path)
    run_downstream.main(f"-n ExpName -m train -u daisy_local -k {checkpoint} -d fluent_commands".split())
    run_downstream.main(["-m", "evaluate", "-e", "result/downstream/ExpName/dev-best.ckpt"])
    out = capsys.readouterr().out
    if not torch.cuda.is_available():
        assert out.count("no CUDA device here: running on the CPU") == 2
    assert out.count("[daisy] test: mean exit layer 4.00 of 4, 100% of the multiply-accumulates") == 1
    of_training, of_test = runs(tmp_path / "result" / "downstream" / "ExpName")
    assert (of_training["mode"], of_test["mode"]) == ("train", "evaluate")


def test_s3prls_own_runner_takes_the_upstream_and_our_checkpoints(train, tmp_path, monkeypatch, checkpoint, fluent):
    """After register() alone; the stock featurizer's weights are s3prl's."""
    from s3prl import run_downstream

    known = f"-u daisy_local -k {checkpoint} -d fluent_commands -c {fluent} --device cpu"
    monkeypatch.setattr("sys.argv", ["x", "-m", "train", *known.split(), "-p", str(tmp_path / "theirs")])
    run_downstream.main()
    assert states(tmp_path / "theirs")["Featurizer"]["weights"].shape == (LAYERS + 1,)
    train(tmp_path / "ours")
    evaluation = ["-m", "evaluate", "-t", "dev", "--device", "cpu", "-e", str(tmp_path / "ours" / "states-6.ckpt")]
    monkeypatch.setattr("sys.argv", ["x", *evaluation])
    run_downstream.main()
    ours, theirs = (tmp_path / "ours" / "log.log").read_text().splitlines()[-2:]
    assert ours.startswith("dev at step 6: ")
    assert theirs == ours.replace("step 6", "step 0")


def test_where_libsox_is_missing_the_effects_of_speech_commands_are_ours(hub, tmp_path):
    from s3prl_upstream import sox

    wav = torch.stack([0.3 * torch.sin(torch.arange(8000) * pitch) for pitch in (0.2, 0.5)])
    soundfile.write(tmp_path / "a.wav", wav.T.numpy(), 8000, subtype="FLOAT")
    chain = [["channels", "1"], ["rate", "16000"], ["gain", "-3.0"]]
    effected, rate = sox.apply_effects_file(tmp_path / "a.wav", chain)
    assert (effected.shape, rate) == ((1, 16000), 16000)
    mean = wav.mean(0)
    assert torch.allclose(effected[0, ::2][100:-100], mean[100:-100] * 10 ** (-3 / 20), atol=1e-4)
    loud, _ = sox.apply_effects_tensor(wav, 8000, [["norm", "-6"]])
    assert float(loud.abs().max()) == pytest.approx(10 ** (-6 / 20), rel=1e-5)
    with pytest.raises(daisy.AudioError, match="sox effect reverb 50: needs libsox"):
        sox.apply_effects_tensor(wav, 8000, [["reverb", "50"]])
