"""Pre-training with fairseq's own command, the audio that it uses, and its starting point."""

import dataclasses
import itertools
import os
import re
import shutil
import subprocess

import numpy
import pytest
import soundfile
import torch

import daisy
from daisy import CheckpointError, EarlyExitEncoder, policies
from daisy.checkpoints.converters import convert
from daisy.checkpoints.converters import fairseq as fairseq_form
from daisy.errors import UsageError
from tests.conftest import KINDS, POST_NORM, tiny_model
from tests.fairseq_plugins.conftest import ROOT, command

TINY = (
    "model.encoder_layers=4", "model.encoder_embed_dim=32", "model.encoder_ffn_embed_dim=48",
    "model.encoder_attention_heads=4", "model.final_dim=8", "+model.conv_pos=16", "+model.conv_pos_groups=4",
    "model.conv_feature_layers='[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2'",
)  # fmt: skip


def pretrain(programs, corpus, folder, updates, *options):
    return command(
        programs / "fairseq-hydra-train", "--config-dir", ROOT / "fairseq_plugins" / "config", "--config-name",
        "hubert_mini_pretraining", f"common.user_dir={ROOT / 'fairseq_plugins'}", "common.cpu=true",
        f"task.data={corpus / 'data'}", f"task.label_dir={corpus / 'data'}", "task.min_sample_size=4000",
        f"task.noise_manifest={corpus / 'data' / 'noise.tsv'}", f"hydra.run.dir={folder}", "dataset.max_tokens=40000",
        f"optimization.max_update={updates}", "lr_scheduler.total_num_update=100", "lr_scheduler.warmup_updates=0",
        "dataset.validate_interval_updates=2", "checkpoint.save_interval_updates=2", *TINY, *options,
    )  # fmt: skip


def states(model, waveform):
    return EarlyExitEncoder(model.backbone, None, policies.Never())([waveform]).states[0]


def test_pretrain_resume_convert_and_load_in_stock_fairseq(corpus, programs, tmp_path):
    start = tiny_model(POST_NORM, num_units=11)
    daisy.save(start, tmp_path / "start.safetensors")
    folder = tmp_path / "run"
    begin = f"model.warm_start={tmp_path / 'start.safetensors'}"
    pretrain(programs, corpus, folder, 2, begin)
    log = pretrain(programs, corpus, folder, 4, begin)
    assert "num_updates 4" in log
    assert len(re.findall(r"Loaded checkpoint .*2 updates", log)) == 1
    trained = convert(folder / "checkpoints" / "checkpoint_last.pt", allow_pickle=True)
    before, after = (m.backbone.feature_extractor.conv_layers[0].conv.weight for m in (start, trained))
    assert torch.equal(after, before.bfloat16().float()), "the front end is not frozen"
    state = torch.load(folder / "checkpoints" / "checkpoint_last.pt", weights_only=False)
    learnt = sum(moments["exp_avg"].numel() for moments in state["last_optimizer_state"]["state"].values())
    front_end = sum(p.numel() for p in start.backbone.feature_extractor.parameters())
    everything = sum(value.numel() for value in state["model"].values())
    assert learnt == everything - front_end  # or weight decay would shrink it
    assert trained.final_head.num_units == 11

    stock = tmp_path / "stock.pt"
    command(programs / "python", "-m", "fairseq_plugins.export", folder / "checkpoints" / "checkpoint_last.pt", stock)
    code = (
        "import torch; from fairseq import checkpoint_utils\n"
        f"models, _, task = checkpoint_utils.load_model_ensemble_and_task([{str(stock)!r}])\n"
        "wave = 0.1 * torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))\n"
        "with torch.no_grad(): x, _ = models[0].eval().extract_features(wave, output_layer=4)\n"
        "print('KIND', type(models[0]).__name__, type(task).__name__, len(task.dictionaries[0]))\n"
        "print('STATES', x[0, :3, 0].tolist())\n"
    )
    printed = command(programs / "python", "-c", code)
    assert "KIND HubertModel HubertPretrainingTask 11" in printed
    read = [float(v) for v in re.search(r"STATES \[(.*)\]", printed)[1].split(", ")]
    wave = 0.1 * torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
    assert read == pytest.approx(states(trained, wave[0])[-1][:3, 0].tolist(), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_our_weights_under_fairseqs_names_come_back_the_same(kind):
    from fairseq_plugins import export

    model = tiny_model(KINDS[kind], num_units=9)
    if kind == "odd":  # fairseq has no projection where the convolutions are as wide as the layers
        projection = model.backbone.encoder.feature_projection.projection
        with pytest.raises(CheckpointError, match="a projection where fairseq has none"):
            fairseq_form.weights(model)
        torch.nn.init.eye_(projection.weight)
        torch.nn.init.zeros_(projection.bias)
    back = fairseq_form.read(export.make_stock_checkpoint(model), {})
    assert back.backbone.config == model.backbone.config
    wave = 0.1 * torch.randn(8000, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(states(back, wave), states(model, wave), atol=1e-5)
    last = states(model, wave)[-1]
    assert torch.allclose(back.final_head(last), model.final_head(last), atol=1e-4)


def test_a_shallow_network_spread_over_a_deep_one_starts_where_it_ended():
    from fairseq_plugins.stacking import spread

    for kind in ("post-norm", "pre-norm"):
        shallow = tiny_model(KINDS[kind], num_units=9)
        deep = daisy.Model(backbone=daisy.Backbone(dataclasses.replace(KINDS[kind], num_layers=12)))
        weights = spread(fairseq_form.weights(shallow), 12)
        assert sum(key.endswith("fc1.weight") for key in weights) == 12
        renamed, _ = fairseq_form.rename(weights, fairseq_form.BACKBONE_RULES + fairseq_form.HEAD_RULES)
        fairseq_form.fold_weight_norm(renamed)
        deep.backbone.load_state_dict({k[9:]: v for k, v in renamed.items() if k.startswith("backbone.")})
        wave = 0.1 * torch.randn(8000, generator=torch.Generator().manual_seed(1))
        ours, theirs = states(deep, wave), states(shallow, wave)
        tolerance = 1e-4 if kind == "pre-norm" else 0.05  # a norm of a normed state changes it a little
        for layer in range(1, 5):
            error = (ours[3 * layer] - theirs[layer]).square().mean().sqrt() / theirs[layer].std()
            assert error < tolerance, (kind, layer)


def test_the_prediction_loss_is_the_stock_models():
    """Our one product gives the logits of fairseq's expanded comparison."""
    from fairseq.models.hubert.hubert import HubertModel

    from fairseq_plugins.pretraining_model import DaisyPretrainingHubert

    generator = torch.Generator().manual_seed(0)
    x, embeddings = torch.randn(20, 8, generator=generator), torch.rand(9, 8, generator=generator)
    target = torch.randint(9, (20,), generator=generator)
    stub = type("Stub", (), {"logit_temp": 0.1})()
    pos, negs = embeddings[target], embeddings[:, None].expand(-1, 20, -1)
    ours = DaisyPretrainingHubert.compute_nce(stub, x, pos, negs)
    theirs = HubertModel.compute_nce(stub, x, pos, negs)
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.fixture
def task_config(corpus):
    from fairseq_plugins.pretraining_task import DaisyPretrainingConfig

    return DaisyPretrainingConfig(
        data=str(corpus / "data"), labels=["km"], label_rate=50.0, max_sample_size=8000, min_sample_size=4000, seed=1
    )


def dataset(cfg):
    from fairseq_plugins.pretraining_task import DaisyPretrainingTask

    task = DaisyPretrainingTask.setup_task(cfg)
    task.load_dataset("train")
    task.load_dataset("valid")
    return task.datasets["train"], task.datasets["valid"]


def test_labels_follow_crop_and_speed(task_config):
    """The corpus's labels count frames modulo 7: a crop must start at a label, a change of speed must stretch them."""
    task_config.speeds = [0.5]
    train, valid = dataset(task_config)
    assert type(valid).__name__ == "HubertDataset"
    item = train[11]  # 1.6 s, cropped to 0.25 s at half speed: 0.5 s
    assert len(item["source"]) == 8000
    labels = (item["label_list"][0] - 4).tolist()  # after fairseq's special symbols
    assert len(labels) in (25, 26)
    steps = [(b - a) % 7 for a, b in itertools.pairwise(labels)]
    assert set(steps) == {0, 1}
    assert abs(sum(steps) - len(labels) // 2) <= 1
    again = dataset(task_config)[0]
    assert torch.equal(again[11]["source"], item["source"])
    again.set_epoch(2)
    assert not torch.equal(again[11]["source"], item["source"])


def find_crop(train, index):
    """At which label the stretch begins that is heard of a recording, and the labels that come with it."""
    source, (labels,) = train[index]["source"], train[index]["label_list"]
    whole = train.dataset[index]["source"]
    places = [start for start in range(0, len(whole) - 8000 + 1, 320)
              if torch.equal(whole[start : start + 8000], source)]  # fmt: skip
    assert len(places) == 1
    return places[0] // 320, labels


def test_a_cropped_stretch_carries_its_own_labels(task_config):
    train, _ = dataset(task_config)
    first, labels = find_crop(train, 11)
    assert torch.equal(labels, train.dataset[11]["label_list"][0][first : first + 25])


def test_what_is_heard_is_drawn_by_seed_and_epoch(task_config):
    """Seed 1 has the crops that there were before seeds had a part; who resumes in epoch 2 has those of epoch 2."""
    places = {}
    for seed in (1, 2, 2**31):
        task_config.seed = seed
        train, _ = dataset(task_config)
        for epoch in (1, 2):
            train.set_epoch(epoch)
            places[seed, epoch] = [find_crop(train, index)[0] for index in range(8, 12)]
    assert places == {
        (1, 1): [11, 0, 37, 1],
        (1, 2): [31, 9, 4, 49],
        (2, 1): [27, 12, 40, 13],
        (2, 2): [37, 18, 3, 13],
        (2**31, 1): [38, 27, 25, 53],
        (2**31, 2): [14, 44, 48, 14],
    }
    resumed, _ = dataset(task_config)
    resumed.set_epoch(2)
    assert find_crop(resumed, 11)[0] == places[2**31, 2][-1]


def test_a_batch_is_cropped_at_places_drawn_by_seed_and_epoch(task_config):
    task_config.random_crop, task_config.max_sample_size = True, 16000
    train, _ = dataset(task_config)
    samples = [train[index] for index in (0, 3, 4)]  # of 0.5, 0.8 and 0.9 s: cropped to the shortest

    def crop():
        return train.collater(samples)["net_input"]["source"]

    first = crop()
    assert first.shape == (3, 8000)
    torch.rand(3), numpy.random.rand(5)  # others' draws
    assert torch.equal(crop(), first)
    after = numpy.random.get_state()[1].tolist()
    train.set_epoch(2)
    assert not torch.equal(crop(), first)
    assert numpy.random.get_state()[1].tolist() == after


def test_a_start_whose_prediction_head_has_another_width_is_refused(task_config, tmp_path):
    """With a new head at random, the first updates would undo what the start has learnt."""
    from fairseq_plugins.pretraining_model import DaisyPretrainingHubert, DaisyPretrainingHubertConfig
    from fairseq_plugins.pretraining_task import DaisyPretrainingTask

    task = DaisyPretrainingTask.setup_task(task_config)
    start = tiny_model(POST_NORM, num_units=11)
    width = start.final_head.embeddings.shape[1]
    daisy.save(start, tmp_path / "start.safetensors")
    shape = {
        "encoder_layers": 4, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 48, "encoder_attention_heads": 4,
        "conv_pos": 16, "conv_pos_groups": 4, "conv_feature_layers": "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2",
        "label_rate": 50.0, "warm_start": str(tmp_path / "start.safetensors"),
    }  # fmt: skip
    model = DaisyPretrainingHubert.build_model(DaisyPretrainingHubertConfig(**shape, final_dim=width), task)
    assert torch.equal(model.label_embs_concat, start.final_head.embeddings)
    with pytest.raises(UsageError, match=f"start.safetensors: its prediction head compares {width} features, and "):
        DaisyPretrainingHubert.build_model(DaisyPretrainingHubertConfig(**shape, final_dim=width + 1), task)


def test_a_last_checkpoint_that_a_stop_cut_short_is_mended(tmp_path):
    from fairseq_plugins.last_checkpoint import mend

    last = tmp_path / "checkpoint_last.pt"
    for updates in (2, 4):
        torch.save({"updates": updates}, tmp_path / f"checkpoint_1_{updates}.pt")
    os.utime(tmp_path / "checkpoint_1_2.pt", (1e9, 1e9))
    whole = (tmp_path / "checkpoint_1_4.pt").read_bytes()
    mend(tmp_path)
    assert not last.exists()
    last.write_bytes(whole[: len(whole) // 2])
    mend(tmp_path)
    assert torch.load(last, weights_only=True) == {"updates": 4}
    torch.save({"updates": 5}, last)
    mend(tmp_path)
    assert torch.load(last, weights_only=True) == {"updates": 5}
    for path in tmp_path.glob("checkpoint_1_*"):
        path.write_bytes(whole[:100])
    last.write_bytes(whole[: len(whole) // 2])
    mend(tmp_path)
    assert not last.exists()


def test_nobody_is_another_talker_of_himself(task_config, tmp_path):
    """A low tone, which a balanced manifest lists often, and a high one, each with the other behind it."""
    times = torch.arange(8000) / 16000
    for name, frequency in (("low", 1000), ("high", 3000)):
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * torch.sin(2 * torch.pi * frequency * times).numpy(), 16000)
    for split in ("train", "valid"):
        lines = ["low.wav\t8000"] * 3 + ["high.wav\t8000"]
        (tmp_path / f"{split}.tsv").write_text("\n".join([str(tmp_path), *lines, ""]))
        (tmp_path / f"{split}.km").write_text(f"{'1 ' * 25}\n" * 4)
    (tmp_path / "dict.km.txt").write_text("1 1\n")
    task_config.data, task_config.talkers_prob = str(tmp_path), 1.0
    train, _ = dataset(task_config)
    heard = {0: set(), 3: set()}
    for epoch in range(1, 21):
        train.set_epoch(epoch)
        for index, frequencies in heard.items():
            behind = train[index]["source"] - train.dataset.get_audio(index)
            frequencies.add(2 * int(torch.fft.rfft(behind).abs().argmax()))
    assert heard == {0: {3000}, 3: {1000}}
    for split in ("train", "valid"):
        (tmp_path / f"{split}.tsv").write_text("\n".join([str(tmp_path), *lines[:3], ""]))
        (tmp_path / f"{split}.km").write_text(f"{'1 ' * 25}\n" * 3)
    with pytest.raises(UsageError, match=r"talkers_prob is 1.0, and there is one recording to draw from"):
        dataset(task_config)


def test_what_is_heard_is_noisy_and_cached_audio_changes_nothing(task_config, corpus):
    task_config.noise_manifest, task_config.noise_prob = str(corpus / "data" / "noise.tsv"), 1.0
    noisy, _ = dataset(task_config)
    task_config.cache_audio = True
    cached, _ = dataset(task_config)
    for _ in range(2):
        assert torch.equal(noisy[3]["source"], cached[3]["source"])
    task_config.noise_prob = 0.0
    clean, _ = dataset(task_config)
    assert not torch.allclose(clean[3]["source"], noisy[3]["source"], atol=1e-3)
    assert torch.equal(clean[3]["label_list"][0], noisy[3]["label_list"][0])


def test_settings_that_cannot_be_met_are_refused(task_config):
    task_config.noise_prob = 0.5
    with pytest.raises(UsageError, match="noise_prob is 0.5, and there is nothing to draw from"):
        dataset(task_config)
    task_config.noise_prob, task_config.label_rate = 0.0, 49.9
    with pytest.raises(UsageError, match="label_rate must divide the sample rate"):
        dataset(task_config)


def test_the_recipe_from_manifests_to_a_stock_checkpoint(corpus, programs, tmp_path):
    """pretrain.sh in one iteration and one more, warm-started; run again, all is done. A bad recording is left out.

    The start has no prediction head, so it gets one of its own width, whatever the configuration's ``final_dim``.
    """
    shutil.copytree(corpus / "data", tmp_path / "manifests")
    (corpus / "wav" / "bad.wav").write_text("no audio")
    with open(tmp_path / "manifests" / "train.tsv", "a") as stream:
        stream.write("bad.wav\t16000\n")
    model = tiny_model(POST_NORM, num_units=9)
    model.final_head = None
    daisy.save(model, tmp_path / "hubert.safetensors")
    variables = (
        f"WARM_START={tmp_path / 'hubert.safetensors'}",
        "UNITS=5 6",
        "LAYER=2",
        "CONFIG=hubert_mini_pretraining",
        f"PATH={programs}:/usr/bin:/bin",
    )
    shape = (option for option in TINY if not option.startswith("model.final_dim"))
    options = ("common.cpu=true", "dataset.max_tokens=40000", "task.min_sample_size=4000", *shape)

    def call(updates: str):
        script = ROOT / "fairseq_plugins" / "pretrain.sh"
        return "env", *variables, f"UPDATES={updates}", script, tmp_path / "manifests", tmp_path / "out", *options

    command(*call("2"))
    first = daisy.load(tmp_path / "out" / "iteration1.safetensors")
    assert first.final_head.embeddings.shape == (9, POST_NORM.width)
    assert "its prediction head is taken over" in (tmp_path / "out" / "iteration1.log").read_text()
    stock = convert(tmp_path / "out" / "hubert.pt", allow_pickle=True)
    wave = 0.1 * torch.randn(8000, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(states(stock, wave), states(first, wave), atol=0.05)  # float16 weights
    exported = (tmp_path / "out" / "hubert.pt").stat().st_mtime
    assert not (tmp_path / "out" / "exits.safetensors").exists()  # this configuration trains none
    assert "train_inner" not in command(*call("2"))
    assert (tmp_path / "out" / "hubert.pt").stat().st_mtime == exported
    command(*call("2 2"))
    second = daisy.load(tmp_path / "out" / "iteration2.safetensors")
    assert (first.final_head.num_units, second.final_head.num_units) == (9, 10)
    assert not torch.equal(states(first, torch.ones(8000)), states(second, torch.ones(8000)))
    units = (tmp_path / "out" / "units2" / "valid.km").read_text().split()
    assert set(units) <= set("012345")
    assert len((tmp_path / "out" / "units2" / "train.km").read_text().splitlines()) == 12
    assert torch.allclose(
        states(convert(tmp_path / "out" / "hubert.pt", allow_pickle=True), wave), states(second, wave), atol=0.05
    )
    refused = subprocess.run([*map(str, call("3 2"))], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "iteration 1 was run with other settings" in refused.stderr


def test_fairseq_train_takes_the_same_options(corpus, programs):
    log = command(
        programs / "fairseq-train", corpus / "data", "--user-dir", ROOT / "fairseq_plugins", "--task",
        "daisy_hubert_pretraining", "--labels", '["km"]', "--label-rate", "50", "--max-sample-size", "8000",
        "--min-sample-size", "4000", "--noise-manifest", corpus / "data" / "noise.tsv", "--noise-prob", "0.5",
        "--speeds", "[0.9,1.0]", "--arch", "daisy_hubert_pretraining", "--encoder-layers", "2",
        "--encoder-embed-dim", "32", "--encoder-ffn-embed-dim", "48", "--encoder-attention-heads", "4",
        "--final-dim", "8", "--conv-feature-layers",
        "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2", "--feature-grad-mult", "-1", "--exit-heads", "--exit-layers",
        "[1,2]", "--criterion", "daisy_exit_pretraining", "--exit-layer-weights", "[0.5,2]", "--feature-weight", "10",
        "--optimizer", "adam", "--lr", "0.001", "--lr-scheduler", "fixed", "--max-update", "2", "--max-tokens", "40000",
        "--cpu", "--num-workers", "0", "--disable-validation", "--no-save", "--log-format", "simple",
    )  # fmt: skip
    assert "Stopping training due to num_updates: 2" in log
