"""Pre-training with fairseq's own command, and its starting point."""

import dataclasses
import re
import shutil
import subprocess

import pytest
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
