import dataclasses
import json
import multiprocessing
import os
import queue
import shutil
import socket
import threading

import pytest
import soundfile
import torch

import daisy
from daisy import CheckpointError, Model
from daisy.audio.mixing import NoiseBank
from daisy.errors import AudioError, OutputError, UsageError
from daisy.models import Conformer, ConformerConfig, Whisper, WhisperConfig
from daisy.training import HeadBatches, HeadLearner, HeadTraining, train_heads
from tests.conftest import randomise, tiny_model

SETTINGS = HeadTraining(max_update=12, warmup_updates=3, max_tokens=30_000, lr=0.01)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.heads.state_dict().items()}


def test_a_stopped_run_comes_to_the_same_heads(corpus, model, tmp_path):
    options = dict(valid=corpus / "valid.tsv", noise=corpus / "noise.tsv", save_interval=5, log_interval=2)
    report = train_heads(corpus / "train.tsv", model, tmp_path / "whole", SETTINGS, **options)
    assert (report.num_updates, report.num_resumed) == (12, 0)
    whole = weights(model)

    def stop(count, made=[]):  # noqa: B006
        made.append(count)
        if sum(made) == 7:
            raise StoppedError

    with pytest.raises(StoppedError):
        train_heads(corpus / "train.tsv", model, tmp_path / "out", SETTINGS, progress=stop, **options)
    again = tiny_model()
    report = train_heads(corpus / "train.tsv", again, tmp_path / "out", SETTINGS, **options)
    assert report.num_resumed == 5
    assert all(torch.equal(whole[name], tensor) for name, tensor in weights(again).items())
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "out")]
    assert logs[0] == logs[1]
    lines = [json.loads(line) for line in logs[0].splitlines()]
    assert [line["update"] for line in lines if line["kind"] == "valid"] == [5, 10, 12]
    loaded = daisy.load(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(whole[name], tensor) for name, tensor in weights(loaded).items())
    with pytest.raises(OutputError, match="holds a run with another lr"):
        train_heads(
            corpus / "train.tsv",
            again,
            tmp_path / "out",
            HeadTraining(max_update=12, warmup_updates=3, max_tokens=30_000),
        )
    more = train_heads(corpus / "train.tsv", again, tmp_path / "out", SETTINGS, overwrite=True, **options)
    assert more.num_resumed == 0
    assert (tmp_path / "out" / "log.jsonl").read_text() == logs[0]


class StoppedError(Exception):
    pass


def stop_at_once(count):
    raise StoppedError


def test_nothing_of_the_run_that_is_overwritten_stays(corpus, model, tmp_path):
    settings, state, result = (
        HeadTraining(max_update=2, warmup_updates=1),
        tmp_path / "training.pt",
        tmp_path / "model.safetensors",
    )
    train_heads(corpus / "train.tsv", model, tmp_path, settings)
    with pytest.raises(StoppedError):
        train_heads(corpus / "train.tsv", model, tmp_path, settings, overwrite=True, progress=stop_at_once)
    assert not state.exists()
    assert not result.exists()
    assert train_heads(corpus / "train.tsv", model, tmp_path, settings).num_resumed == 0
    again = daisy.load(result)  # the file that is learnt on is not removed
    with pytest.raises(StoppedError):
        train_heads(corpus / "train.tsv", again, tmp_path, settings, overwrite=True, progress=stop_at_once)
    assert (state.exists(), result.exists()) == (False, True)


def test_training_that_diverges_keeps_what_was_saved(corpus, model, tmp_path):
    settings = HeadTraining(max_update=4, warmup_updates=0, lr=1e30)
    with pytest.raises(UsageError, match=r"training has diverged: update 2 has loss .*; lower lr, or set clip_norm"):
        train_heads(corpus / "train.tsv", model, tmp_path, settings, save_interval=1, log_interval=1)
    state = torch.load(tmp_path / "training.pt", weights_only=True)
    assert state["num_updates"] == 1
    assert all(tensor.isfinite().all() for tensor in state["heads"].values())
    assert [json.loads(line)["update"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1]


@pytest.mark.parametrize("from_labels", [True, False])
def test_heads_learn_the_units(from_labels, corpus, model, tmp_path):
    settings = HeadTraining(max_update=60, warmup_updates=5, max_tokens=60_000, lr=0.03)
    labels = corpus if from_labels else None
    report = train_heads(corpus / "train.tsv", model, tmp_path, settings, labels=labels, log_interval=5)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["nats_4"] < 0.9 * lines[0]["nats_4"]
    assert report.train["accuracy_1"] > (0.22 if from_labels else 0.5)
    assert model.heads.config.num_units == (9 if from_labels else 11)
    if not from_labels:  # what is learnt is what the teacher says of each frame
        batch = HeadBatches(corpus / "train.tsv", settings).read([3], 0)
        states = model.encoder("never")(batch.source).states[0]
        wanted = model.final_head(states[-1]).argmax(-1)
        heard = model.heads.unit_logits(4, states[4]).argmax(-1)
        assert (heard == wanted).float().mean() > 0.6
    assert model.heads.regressors[0].count == 9 * 60 / len(HeadBatches(corpus / "train.tsv", settings).plan(0))


def test_labels_take_the_place_of_the_models_own_units(corpus, model, tmp_path):
    """Policies would be set against units that the heads never learnt."""
    train_heads(corpus / "train.tsv", model, tmp_path / "labels", SETTINGS, labels=corpus)
    assert daisy.load(tmp_path / "labels" / "model.safetensors").final_head is None
    train_heads(corpus / "train.tsv", other := tiny_model(), tmp_path / "own", SETTINGS)
    assert daisy.load(tmp_path / "own" / "model.safetensors").final_head.num_units == other.heads.config.num_units


def test_provenance_tells_of_the_heads_that_were_trained(corpus, model, tmp_path):
    model.provenance = {"backbone": "small", "heads": "learnt with the backbone", "policies": "60% mean depth"}
    train_heads(corpus / "train.tsv", model, tmp_path, SETTINGS)
    told = {"backbone": "small", "heads": "daisy train-heads, 12 updates on 5.4 s of audio"}
    assert daisy.load(tmp_path / "model.safetensors").provenance == told


def list_readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("daisy-batches")]


def test_the_next_batch_is_read_while_one_is_learnt_from(corpus, model, tmp_path, monkeypatch):
    reads, read, made = queue.Queue(), HeadBatches.read, []
    monkeypatch.setattr(HeadBatches, "read", lambda *call: (reads.put(call), read(*call))[1])

    def wait_for_the_next(count):
        made.append(count)
        for _ in range({1: 2, 2: 1}.get(sum(made), 0)):  # after the first update the second batch has been begun too
            reads.get(timeout=30)

    settings = dataclasses.replace(SETTINGS, max_update=3, warmup_updates=1)
    train_heads(corpus / "train.tsv", model, tmp_path / "whole", settings, progress=wait_for_the_next)
    assert (reads.empty(), list_readers()) == (True, [])
    monkeypatch.undo()
    with pytest.raises(StoppedError) as stopped:
        train_heads(corpus / "train.tsv", model, tmp_path / "out", SETTINGS, progress=lambda n: n and stop_at_once(n))
    assert stopped.tb  # which keeps the frames of the run
    assert not list_readers()


def test_a_recording_that_cannot_be_read_ends_the_run_at_its_own_batch(corpus, model, tmp_path):
    shutil.copytree(corpus, tmp_path / "corpus")
    (tmp_path / "corpus" / "train4.wav").write_bytes(b"")
    manifest = tmp_path / "corpus" / "train.tsv"
    manifest.write_text(manifest.read_text().replace(str(corpus), str(tmp_path / "corpus")))
    plan = HeadBatches(manifest, SETTINGS).plan(0)
    before = next(place for place, indices in enumerate(plan) if 4 in indices)
    made = []
    with pytest.raises(AudioError, match=r"train4\.wav"):
        train_heads(manifest, model, tmp_path / "out", SETTINGS, progress=made.append, save_interval=1)
    assert sum(made) == before
    assert not list_readers()
    if before:
        assert torch.load(tmp_path / "out" / "training.pt", weights_only=True)["num_updates"] == before


def test_a_run_does_not_go_on_with_other_targets(corpus, model, tmp_path):
    labels = tmp_path / "labels"
    shutil.copytree(corpus, labels)
    options = dict(labels=labels, noise=labels / "noise.tsv")
    train_heads(corpus / "train.tsv", model, tmp_path / "out", SETTINGS, **options)
    lines = (labels / "train.km").read_text().splitlines()
    (labels / "train.km").write_text("\n".join([*lines[:-1], lines[-1][::-1], ""]))
    with pytest.raises(OutputError, match="holds a run with another labels;"):
        train_heads(corpus / "train.tsv", model, tmp_path / "out", SETTINGS, **options)
    (labels / "train.km").write_text("\n".join([*lines, ""]))
    (labels / "noise.tsv").write_text((labels / "noise.tsv").read_text().replace(str(corpus), str(labels)))
    assert train_heads(corpus / "train.tsv", model, tmp_path / "out", SETTINGS, **options).num_resumed == 12
    soundfile.write(labels / "noise0.wav", [0.1, -0.1] * 3000, 16000)
    with pytest.raises(OutputError, match="holds a run with another noise;"):
        train_heads(corpus / "train.tsv", model, tmp_path / "out", SETTINGS, **options)
    (labels / "noise.tsv").write_text((labels / "noise.tsv").read_text().rsplit("\n", 2)[0] + "\n")
    with pytest.raises(OutputError, match="holds a run with another noise;"):
        train_heads(corpus / "train.tsv", model, tmp_path / "out", SETTINGS, **options)


def test_a_manifest_that_promises_too_much_is_refused_by_name(corpus, model, tmp_path):
    shutil.copytree(corpus, tmp_path / "corpus")
    soundfile.write(tmp_path / "corpus" / "train4.wav", [0.1] * 300, 16000)
    manifest = tmp_path / "corpus" / "train.tsv"
    manifest.write_text(manifest.read_text().replace(str(corpus), str(tmp_path / "corpus")))
    with pytest.raises(AudioError, match=r"train4\.wav: too short: 300 samples"):
        train_heads(manifest, model, tmp_path / "out", SETTINGS)


def test_what_is_too_short_is_counted(corpus, model, tmp_path):
    settings = dataclasses.replace(SETTINGS, min_sample_size=8000)
    assert train_heads(corpus / "train.tsv", model, tmp_path, settings).num_left_out == 3


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"clip_norm": -1.0}, "clip_norm must be at least 0, found -1"),
        ({"clip_norm": float("nan")}, "clip_norm must be at least 0, found nan"),
        ({"seed": -1}, "seed must be at least 0, found -1"),
        ({"max_sample_size": 0}, "max_sample_size must be at least 1, found 0"),
        ({"min_sample_size": 0}, "min_sample_size must be at least 1, found 0"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(UsageError) as error:
        HeadTraining(**setting)
    assert str(error.value) == message


def test_noise_is_heard_by_the_heads_alone(corpus, model):
    noises = NoiseBank.from_manifest(corpus / "noise.tsv")
    always = HeadTraining(noise_prob=1.0, noise_snr_db=(0.0, 0.0))
    clean, noisy = HeadLearner(model, always).eval(), HeadLearner(model, always, noises=noises).eval()
    batch = HeadBatches(corpus / "train.tsv", always).read([1, 2], 0)
    (one, of_clean), (other, of_noisy) = clean(batch), noisy(batch)
    assert of_clean["ntokens"] == of_noisy["ntokens"] == sum((n - 400) // 320 + 1 for n in batch.num_samples.tolist())
    assert not torch.isclose(one, other, rtol=1e-3)
    assert torch.equal(noisy(batch)[0], other)


def test_masked_frames_are_learnt_from(corpus, model):
    masking = HeadTraining(mask_prob=0.5, mask_length=4, pred_nomask_weight=0.0)
    learner = HeadLearner(model, masking).eval()
    batch = HeadBatches(corpus / "train.tsv", masking).read([5, 8], 0)
    loss, log = learner(batch)
    frames = sum((n - 400) // 320 + 1 for n in batch.num_samples.tolist())
    assert 0.2 < log["ntokens"] / frames < 0.7
    assert log["judged"] == log["ntokens"]
    assert torch.equal(learner(batch)[0], loss)


def update_in_process(rank, world_size, port, corpus, queue):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world_size))
    torch.distributed.init_process_group("gloo")
    learner = HeadLearner(tiny_model(), HeadTraining(warmup_updates=0, lr=0.01))
    batches = HeadBatches(corpus / "train.tsv", learner.settings)
    for of_ranks in ([[0, 1], [2, 3, 4]], [[5, 6, 7], [8]]):
        log = learner.update(batches.read(of_ranks[rank], 0))
    queue.put((rank, log, {name: tensor.numpy() for name, tensor in learner.heads.state_dict().items()}))
    torch.distributed.destroy_process_group()


def test_two_processes_learn_what_one_learns_from_both_batches(corpus, model):
    """Statistics of the regressors too: any process's state is that of the run."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=update_in_process, args=(rank, 2, port, corpus, queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    learner = HeadLearner(model, HeadTraining(warmup_updates=0, lr=0.01))
    for indices in ([0, 1, 2, 3, 4], [5, 6, 7, 8]):
        log = learner.update(HeadBatches(corpus / "train.tsv", learner.settings).read(indices, 0))
    for _, of_process, heads in results:
        assert of_process["ntokens"] == log["ntokens"]
        assert of_process["loss"] == pytest.approx(log["loss"], rel=1e-5)
        for name, tensor in learner.heads.state_dict().items():
            torch.testing.assert_close(torch.from_numpy(heads[name]), tensor, rtol=1e-4, atol=1e-5)


def test_heads_of_other_networks_learn(corpus, tmp_path):
    """The heads of a Whisper and of a Conformer, from label files; masks are of HuBERT's embedding."""
    settings = HeadTraining(max_tokens=30_000, max_update=3, warmup_updates=1)
    networks = {
        "whisper": Whisper(WhisperConfig(num_layers=2, width=32, ffn_width=48, num_heads=4, window_frames=150)),
        "conformer": Conformer(
            ConformerConfig(num_layers=4, width=32, ffn_width=48, num_heads=4, kernel=7, num_mels=20)
        ),
    }
    for name, backbone in networks.items():
        model = Model(backbone=randomise(backbone))
        report = train_heads(corpus / "train.tsv", model, tmp_path / name, settings, labels=corpus)
        assert report.train["nats_1"] > 0
        trained = daisy.load(tmp_path / name / "model.safetensors")
        assert trained.heads.config.num_units == 9
        out = trained.encoder("entropy", threshold=1e9)([0.1 * torch.randn(16000)])
        assert out.exit_layer.tolist() == [1]
        masked = dataclasses.replace(settings, mask_prob=0.5)
        with pytest.raises(UsageError, match="mask_prob is for HuBERT and its kin"):
            train_heads(corpus / "train.tsv", model, tmp_path / "masked", masked, labels=corpus)


def test_without_a_teacher_labels_are_needed(corpus, tmp_path):
    bare = Model(backbone=tiny_model().backbone)
    with pytest.raises(CheckpointError, match="no prediction head of its own to learn from: give labels"):
        train_heads(corpus / "train.tsv", bare, tmp_path)
