"""What daisy-s3prl refuses, in one line, before anything is trained."""

import json
import shutil
import subprocess
import sys

import pytest

import daisy
from tests.s3prl_upstream.conftest import lines, runs

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_policy_that_changed_under_an_experiment_is_refused(train, launch, tmp_path):
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"name": "fixed", "layer": 2}))
    train(tmp_path / "run", "-g", path)
    path.write_text(json.dumps({"name": "fixed", "layer": 1}))
    evaluation = ("-m", "evaluate", "-e", tmp_path / "run" / "states-6.ckpt", "-t", "dev")
    with pytest.raises(daisy.DaisyError, match="the policy is no longer the one that .* was trained with"):
        launch(*evaluation)
    launch(*evaluation, "-o", f"args.upstream_model_config={path}")
    assert [run["splits"].get("dev", {}).get("mean_exit_layer") for run in runs(tmp_path / "run")] == [2, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-k", "nowhere.safetensors"), "nowhere.safetensors: no such checkpoint; bundled models: daisy-mini"),
        (("-g", "nowhere.json"), "nowhere.json: no such policy file; daisy calibrate makes one"),
        (("--featurizer", "dynamics"), "argument --featurizer: invalid choice: 'dynamics' (choose from"),
        (("--cache-mean",), "--cache-mean is for --cache DIR"),
        (("--featurize", "dynamic"), "unrecognized arguments: --featurize dynamic"),
        (("-u", "daisy_locale"), "-u daisy_locale: s3prl has no such upstream; daisy's: daisy_local"),
        (
            ("-u", "fbank", "--featurizer", "dynamic"),
            "--featurizer and --cache are for daisy's upstreams, not for -u fbank",
        ),
        (("-d", "fluent"), "-d fluent: s3prl has no such task"),
        (("-c", "nowhere.yaml"), "nowhere.yaml: No such file or directory; s3prl's wheel brings no configurations"),
        (("-e", "nowhere.ckpt"), "nowhere.ckpt: No such file or directory\n"),
        (("-o", "config.downstream_expert.datarc.file_path=/nowhere"), "/nowhere/data/train_data.csv"),
        (("-m", "inference", "-t", "nowhere.wav"), "-t nowhere.wav: -m inference takes a recording"),
        (("-m", "evaluate", "-t", "tset"), "-d fluent_commands has no data for split tset"),
        (("--cache-dtype", "float16"), "--cache-dtype is for --cache DIR"),
        (("-o", "config.runner.total_steps"), "-e or -o: no checkpoint of s3prl's runner, or no KEY=VALUE"),
        (("-l", "9"), "-l 9: the upstream has layers 0 to 4"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_refusals_are_one_line(launch, checkpoint, fluent, tmp_path, capsys, monkeypatch, arguments, message):
    from s3prl_upstream.run_downstream import main

    monkeypatch.chdir(tmp_path)
    known = ["-m", "train", "-u", "daisy_local", "-k", str(checkpoint), "-d", "fluent_commands", "-c", str(fluent)]
    with pytest.raises(SystemExit) as end:
        main([*known, "-p", "run", "--device", "cpu", *arguments])
    assert end.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[")]  # s3prl's own
    assert len(said) == 1
    assert said[0].startswith("daisy-s3prl: ")
    assert message in said[0] + "\n"


def test_a_summary_that_is_none_is_refused_before_training(train, tmp_path):
    (tmp_path / "exits_summary.json").write_text('{"runs": [1]}')
    with pytest.raises(daisy.DaisyError, match="not a summary of daisy's; move it away"):
        train(tmp_path)
    assert not (tmp_path / "exits.jsonl").exists()


def test_without_s3prl_it_says_what_to_install():
    """yaml comes with s3prl."""
    code = (
        "import sys; sys.modules.update(s3prl=None, yaml=None); "
        "from s3prl_upstream.run_downstream import main; main(['-m', 'train'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "pip install 'daisy-speech[s3prl]'" in done.stderr


def test_a_calibrated_policy_is_for_its_checkpoint_only(train, tmp_path, checkpoint):
    from daisy import policies, policy_file

    path = tmp_path / "policy.json"
    made = dict(target={}, attained={}, data={})
    digest = daisy.checkpoint.digest(checkpoint)
    policy_file.write(path, policies.Entropy(threshold=1.7), checkpoint="tiny", digest=digest, **made)
    train(tmp_path / "run", "-g", path)
    scores = [row["scores"]["entropy"] for row in lines(tmp_path / "run")]
    assert all(min(row[:-1], default=9) > 1.7 for row in scores)
    assert (tmp_path / "run" / "exits_summary.json").is_file()
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "checkpoint": {"name": "other", "digest": "0" * 64}}))
    with pytest.raises(daisy.PolicyError, match="was calibrated for other"):
        train(tmp_path / "run", "-g", path)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_recording_that_cannot_be_read_is_named_whoever_reads_it(fluent, checkpoint, tmp_path, capsys, workers):
    from s3prl_upstream.run_downstream import main

    corpus = tmp_path / "corpus"
    shutil.copytree(fluent.parent, corpus)
    (corpus / "wavs" / "train3.wav").write_text("no sound")
    settings = (
        f"config.downstream_expert.datarc.file_path={corpus},,config.downstream_expert.datarc.num_workers={workers}"
    )
    known = ["-m", "train", "-u", "daisy_local", "-k", str(checkpoint), "-d", "fluent_commands", "-c", str(fluent)]
    with pytest.raises(SystemExit) as end:
        main([*known, "-p", str(tmp_path / "run"), "--device", "cpu", "-o", settings])
    assert end.value.code == 2
    said = capsys.readouterr().err
    reason = f"daisy-s3prl: Error opening '{corpus}/wavs/train3.wav': Format not recognised; -e EXP or -a goes on"
    assert reason in said
    assert "Traceback" not in said
