"""Errors of daisy-s3prl, in one line each, before anything is trained."""

import json
import shutil
import subprocess
import sys

import pytest
import torchaudio

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
        (("-o", "config.runner.total_steps"), "-o config.runner.total_steps: not KEY=VALUE"),
        (("-g", "plateua"), "no such policy file, and unknown policy 'plateua': did you mean plateau?"),
        (("-l", "x"), "argument -l/--upstream_layer_selection: invalid int value: 'x'"),
        (("-o", "args.x.y=1"), "-o args.x.y=1: not KEY=VALUE,,KEY=VALUE of args.KEY and config.KEY (AssertionError"),
        (("-o", "config.runner.total_steps.x=1"), "-o config.runner.total_steps.x=1: not KEY=VALUE"),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-m", "evaluate"), "-u UPSTREAM is missing (or -e CKPT, which knows it)"),
        (("-m", "train", "-u", "daisy_mini", "-p", "x"), "-d TASK is missing"),
        (
            ("-m", "train", "-u", "daisy_mini", "-d", "ic"),
            "-p FOLDER (or -n NAME, for result/downstream/NAME) is missing",
        ),
    ],
)
def test_what_s3prl_needs_is_asked_for(launch, arguments, message):
    with pytest.raises(daisy.DaisyError) as refused:
        launch(*arguments)
    assert str(refused.value).startswith(message)


def test_an_experiment_is_not_written_over_nor_gone_on_with_as_another(train, launch, policy, tmp_path):
    train(tmp_path)
    before = (tmp_path / "states-6.ckpt").read_bytes()
    with pytest.raises(daisy.DaisyError, match="holds an experiment: -a goes on with it"):
        train(tmp_path)
    for options in (("-m", "evaluate", "-e", tmp_path / "states-6.ckpt"), ("-m", "train", "-p", tmp_path, "-a")):
        with pytest.raises(daisy.DaisyError, match=f"-g never: .* was begun with {policy}, .* -o args.upstream"):
            launch(*options, "-g", "never")
    with pytest.raises(daisy.DaisyError, match=r"--upstream_feature_normalize True: .* was begun with False"):
        launch("-m", "train", "-p", tmp_path, "-a", "--upstream_feature_normalize")
    with pytest.raises(daisy.DaisyError, match="-u fbank: .* was begun with daisy_local"):  # args.upstream is not named
        launch("-m", "train", "-p", tmp_path, "-a", "-u", "fbank", "-o", "args.upstream_model_config=never")
    with pytest.raises(daisy.DaisyError, match="holds an experiment"):
        train(tmp_path / "new", "-o", f"args.expdir={tmp_path}")
    assert (tmp_path / "states-6.ckpt").read_bytes() == before
    with pytest.raises(daisy.DaisyError, match="best.ckpt: No such file or directory; .* holds .*states-6.ckpt"):
        launch("-m", "evaluate", "-e", tmp_path / "best.ckpt")
    launch("-m", "evaluate", "-e", tmp_path / "states-6.ckpt", "-t", "dev", "-o", "args.upstream_model_config=never")
    assert runs(tmp_path)[-1]["splits"]["dev"]["mean_exit_layer"] == 4


def test_labels_that_training_never_had_are_one_line(train, launch, fluent, tmp_path):
    train(tmp_path / "run")
    corpus = tmp_path / "corpus"
    shutil.copytree(fluent.parent, corpus)
    table = corpus / "data" / "test_data.csv"
    table.write_text(table.read_text().replace("lamp0", "window"))
    other = ("-o", f"config.downstream_expert.datarc.file_path={corpus}")
    with pytest.raises(
        daisy.DaisyError, match="the task's data does not fit its checkpoint .*: KeyError 'window' .*dataset.py:"
    ):
        launch("-m", "evaluate", "-e", tmp_path / "run" / "states-6.ckpt", *other)


def test_a_summary_that_is_none_is_refused_before_training(train, tmp_path):
    (tmp_path / "exits_summary.json").write_text('{"runs": [1]}')
    with pytest.raises(daisy.DaisyError, match="not a summary of daisy's; move it away"):
        train(tmp_path)
    assert not (tmp_path / "exits.jsonl").exists()


def test_without_s3prl_it_says_what_to_install():
    """yaml and torchaudio come with s3prl."""
    code = (
        "import sys; sys.modules.update(s3prl=None, yaml=None, torchaudio=None); "
        "from s3prl_upstream.run_downstream import main; main(['-m', 'train'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "pip install 'daisy-speech[s3prl]'" in done.stderr


def test_a_calibrated_policy_is_for_its_checkpoint_only(train, tmp_path, checkpoint):
    from daisy import policies
    from daisy.policies import write_policy

    path = tmp_path / "policy.json"
    made = dict(target={}, attained={}, data={})
    digest = daisy.checkpoints.format.digest(checkpoint)
    write_policy(path, policies.Entropy(threshold=1.7), checkpoint="tiny", digest=digest, **made)
    train(tmp_path / "run", "-g", path)
    scores = [row["scores"]["entropy"] for row in lines(tmp_path / "run")]
    assert all(min(row[:-1], default=9) > 1.7 for row in scores)
    assert (tmp_path / "run" / "exits_summary.json").is_file()
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "checkpoint": {"name": "other", "digest": "0" * 64}}))
    with pytest.raises(daisy.PolicyError, match="was calibrated for other"):
        train(tmp_path / "other", "-g", path)


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
    path = f"{corpus}/wavs/train3.wav"
    reason = f"Error opening '{path}': Format not recognised"
    if "ffmpeg" in torchaudio.list_audio_backends():
        reason = f'Failed to open the input "{path}" (Invalid data found when processing input)'
    assert f"daisy-s3prl: {reason}; -e EXP or -a goes on" in said
    assert "Traceback" not in said
