"""Training the heads with fairseq's own commands."""

import argparse
import re

import pytest
import torch

import daisy
from daisy import EarlyExitEncoder, policies
from daisy.checkpoints.converters import convert
from tests.conftest import randomise
from tests.fairseq_plugins.conftest import BIN, ROOT, command, heads_options, refuse, takes_processes_without_gpus


def weights(path):
    return torch.load(path, map_location="cpu", weights_only=False)["model"]


def losses(log, prefix):
    """Loss by update of one kind of log line."""
    lines = [line for line in log.splitlines() if f"| {prefix} |" in line or f"[{prefix}][INFO]" in line]
    return [float(re.search(r"loss[= ]([\d.]+)", line)[1]) for line in lines]


def test_train_resume_reload_convert(corpus, programs, tmp_path):
    def train(folder, updates):
        options = heads_options(corpus, tmp_path / folder, updates)
        random = ("--mask-prob", "0.65", "--mask-length", "5", "--noise-prob", "0.5")
        return command(programs / "fairseq-train", *options, *random)

    log = train("whole", 12)
    train("resumed", 4)
    train("resumed", 12)
    whole, resumed = (weights(tmp_path / name / "checkpoint_last.pt") for name in ("whole", "resumed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole), "resuming is not exact"

    backbone = daisy.load(corpus / "hubert.safetensors").backbone.state_dict()
    assert all(torch.equal(whole[f"backbone.{key}"], value) for key, value in backbone.items()), "not frozen"
    valid = losses(log, "valid")
    assert valid[-1] < valid[0]
    assert all(f"{name}_{layer}" in log for name in ("nats", "accuracy", "regressor_error") for layer in range(1, 5))

    path = tmp_path / "whole" / "checkpoint_best.pt"
    converted = convert(path, allow_pickle=True)
    wave = [0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0))]
    encoder = EarlyExitEncoder(converted.backbone, converted.heads, policies.Never(), scores=["entropy", "regressed"])
    reads = list(encoder(wave).scores.values())
    code = (
        "import argparse, torch; from fairseq import checkpoint_utils, utils\n"
        f"utils.import_user_module(argparse.Namespace(user_dir={str(ROOT / 'fairseq_plugins')!r}))\n"
        f"models, _, _ = checkpoint_utils.load_model_ensemble_and_task([{str(path)!r}])\n"
        "from daisy import EarlyExitEncoder, policies\n"
        "wave = [0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0))]\n"
        "m = models[0]\n"
        "out = EarlyExitEncoder(m.backbone, m.heads, policies.Never(), scores=['entropy', 'regressed'])(wave)\n"
        "print('SCORES', [v for s in out.scores.values() for v in s[0].tolist()])\n"
    )
    (corpus / "hubert.safetensors").rename(corpus / "away.safetensors")  # a checkpoint needs nothing beside it
    try:
        printed = command(programs / "python", "-c", code)
    finally:
        (corpus / "away.safetensors").rename(corpus / "hubert.safetensors")
    reloaded = [float(v) for v in re.search(r"SCORES \[(.*)\]", printed)[1].split(", ")]
    assert reloaded == pytest.approx([v for s in reads for v in s[0].tolist()], abs=1e-5)


def test_labels_masks_and_weights(corpus, tmp_path):
    """Label files as targets, frames masked, only masked ones counted; no teacher is asked. Started as users do."""
    log = command(
        BIN / "fairseq-train", *heads_options(corpus, tmp_path / "labels", 4), "--labels", '["km"]',
        "--target", "labels", "--mask-prob", "0.65", "--pred-nomask-weight", "0",
    )  # fmt: skip
    assert len(losses(log, "valid")) >= 1
    model = convert(tmp_path / "labels" / "checkpoint_last.pt", allow_pickle=True)
    assert model.heads.config.num_units == 11  # as many as the teacher's: 7 labels and 4 special symbols
    assert model.final_head is None  # and yet not the teacher's units


def make_wavlm(folder):
    """A folder of transformers, and its states of one waveform."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    sizes = dict(num_hidden_layers=2, hidden_size=32, intermediate_size=48, num_attention_heads=4, conv_dim=[16] * 7)
    config = transformers.WavLMConfig(**sizes, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4)
    model = randomise(transformers.WavLMModel(config)).eval()
    for part in (model, transformers.Wav2Vec2FeatureExtractor(do_normalize=False)):
        part.save_pretrained(folder)
    return lambda wave: model(wave[None]).last_hidden_state[0]


def make_whisper(folder):
    """Likewise, with windows of three seconds."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    sizes = dict(encoder_layers=2, d_model=32, encoder_ffn_dim=48, encoder_attention_heads=4, decoder_layers=1)
    sizes |= dict(decoder_attention_heads=4, decoder_ffn_dim=8, vocab_size=20, max_source_positions=150)
    special = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)
    model = randomise(transformers.WhisperModel(transformers.WhisperConfig(**sizes, **special))).eval()
    extractor = transformers.WhisperFeatureExtractor(chunk_length=3)
    for part in (model, extractor):
        part.save_pretrained(folder)

    def run(wave):
        features = extractor(wave.numpy(), sampling_rate=16000, return_tensors="pt").input_features
        return model.encoder(features).last_hidden_state[0, : len(wave) // 320]

    return run


@pytest.mark.parametrize(("make", "network"), [(make_wavlm, "WavLM"), (make_whisper, "Whisper's encoder")])
def test_heads_on_other_networks(make, network, corpus, programs, tmp_path):
    """Two updates, from the folder of transformers itself; the checkpoint keeps what the network is."""
    run_theirs = make(tmp_path / "hf")
    options = [*heads_options(corpus, tmp_path / "run", 2), "--labels", '["km"]', "--target", "labels"]
    options[options.index("--hubert-path") + 1] = tmp_path / "hf"
    options[options.index("--validate-interval-updates") + 1] = 2
    log = command(programs / "fairseq-train", *options)
    assert losses(log, "valid")
    trained = convert(tmp_path / "run" / "checkpoint_last.pt", allow_pickle=True)
    assert trained.heads.config.num_units == 11
    assert trained.provenance["network"] == network
    wave = 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = run_theirs(wave)
    out = trained.encoder(policies.Fixed(layer=2), scores=["entropy"])([wave])
    assert (out.states[0][-1] - expected).abs().max() < 1e-4 * expected.std()
    assert out.scores["entropy"].isfinite().all()


def test_frames_are_masked_where_pre_training_masks_them(corpus, programs, tmp_path):
    make_whisper(tmp_path / "hf")
    options = [*heads_options(corpus, tmp_path / "run", 2), "--labels", '["km"]', "--target", "labels"]
    options[options.index("--hubert-path") + 1] = tmp_path / "hf"
    said = refuse(programs / "fairseq-train", *options, "--mask-prob", "0.5")
    assert "mask_prob is for HuBERT and its kin, whose pre-training masks frames: leave it 0" in said


def test_hydra(corpus, tmp_path):
    """Started as users do."""
    log = command(
        BIN / "fairseq-hydra-train", "--config-dir", ROOT / "fairseq_plugins" / "config", "--config-name", "daisy_mini",
        f"common.user_dir={ROOT / 'fairseq_plugins'}", "common.cpu=true", f"task.data={corpus / 'data'}",
        f"model.hubert_path={corpus / 'hubert.safetensors'}", f"hydra.run.dir={tmp_path}", "optimization.max_update=4",
        "dataset.max_tokens=40000", f"criterion.noise_manifest={corpus / 'data' / 'noise.tsv'}",
    )  # fmt: skip
    assert losses(log, "valid")
    assert convert(tmp_path / "checkpoints" / "checkpoint_last.pt", allow_pickle=True).heads is not None


def test_two_cpu_processes(corpus, programs, tmp_path):
    """fairseq's own distributed training over gloo; needs --ddp-backend no_c10d."""
    if not takes_processes_without_gpus():
        pytest.skip("the fork of fairseq does not take torchrun's processes without GPUs")
    log = command(
        BIN / "torchrun", "--nproc_per_node", "2", "--standalone", "--no-python", programs / "fairseq-train",
        *heads_options(corpus, tmp_path / "two", 4), "--distributed-backend", "gloo", "--ddp-backend", "no_c10d",
    )  # fmt: skip
    assert "'distributed_world_size': 2" in log
    trained = convert(tmp_path / "two" / "checkpoint_last.pt", allow_pickle=True)
    assert all(p.isfinite().all() for p in trained.heads.parameters())
    assert losses(log, "valid")


def test_configurations_name_every_field():
    """The three files differ in sizes only, and set nothing that does not exist."""
    import fairseq.utils
    from omegaconf import OmegaConf

    fairseq.utils.import_user_module(argparse.Namespace(user_dir=str(ROOT / "fairseq_plugins")))
    from fairseq_plugins.criterion import DaisyExitHeadsConfig
    from fairseq_plugins.model import DaisyHubertConfig

    for name in ("daisy_mini", "daisy_base", "daisy_large"):
        config = OmegaConf.load(ROOT / "fairseq_plugins" / "config" / f"{name}.yaml")
        for part, known in (("criterion", DaisyExitHeadsConfig), ("model", DaisyHubertConfig)):
            assert set(config[part]) - {"_name"} == set(known.__dataclass_fields__) - {"_name"}
