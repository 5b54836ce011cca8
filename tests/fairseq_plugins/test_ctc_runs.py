"""Recognisers trained with fairseq's own commands, as users run them: the resulting models transcribe."""

import argparse
import re
from pathlib import Path

import pytest
import torch

import daisy
from daisy.checkpoints.converters import convert
from daisy.policies import Never
from daisy.recognition import Recogniser
from tests.fairseq_plugins.conftest import BIN, ROOT, command, refuse, takes_processes_without_gpus

CONFIG = ROOT / "fairseq_plugins" / "config"
TINY_CONFORMER = (
    "model.encoder_layers=4", "model.encoder_embed_dim=32", "model.encoder_ffn_embed_dim=48",
    "model.depthwise_conv_kernel_size=7", "+model.num_mels=20",
)  # fmt: skip


@pytest.fixture(scope="module")
def texts(corpus, tmp_path_factory):
    """The corpus with texts, as ``daisy manifest --text`` writes them."""
    folder = tmp_path_factory.mktemp("texts")
    for split in ("train", "valid"):
        names = [line.split("\t")[0] for line in (corpus / "data" / f"{split}.tsv").read_text().splitlines()[1:]]
        (folder / f"{split}.tsv").write_text((corpus / "data" / f"{split}.tsv").read_text())
        said = ["AB" if index % 2 else "B A" for index in range(len(names))]
        daisy.audio.write_transcripts(folder / f"{split}.tsv", said)
    return folder


def train(programs, texts, folder, config, *changes, updates=2):
    return command(
        programs / "fairseq-hydra-train", "--config-dir", CONFIG, "--config-name", config,
        f"common.user_dir={ROOT / 'fairseq_plugins'}", "common.cpu=true", f"task.data={texts}",
        f"hydra.run.dir={folder}", "task.min_sample_size=4000", "dataset.max_tokens=40000", "common.log_interval=1",
        f"optimization.max_update={updates}", "lr_scheduler._name=fixed", "~lr_scheduler.phase_ratio",
        "~lr_scheduler.final_lr_scale", "~lr_scheduler.max_update", "dataset.validate_interval_updates=2",
        "checkpoint.save_interval_updates=2", *changes,
    )  # fmt: skip


def read_weights(folder):
    return torch.load(folder / "checkpoints" / "checkpoint_last.pt", map_location="cpu", weights_only=False)["model"]


def test_hubert_in_two_stages(corpus, texts, programs, tmp_path):
    tiny = ("model.mask_channel_length=2", "model.freeze_finetune_updates=0")
    first = train(
        programs, texts, tmp_path / "first", "daisy_mini_ctc", f"model.w2v_path={corpus / 'hubert.safetensors'}",
        "model.exit_layers=[4]", *tiny,
    )  # fmt: skip
    assert "uer_4 " in first
    checkpoint = tmp_path / "first" / "checkpoints" / "checkpoint_last.pt"
    second = train(
        programs, texts, tmp_path / "second", "daisy_mini_ctc", f"model.w2v_path={checkpoint}",
        "model.training=branches", "model.exit_layers=[2]", "model.branch=attention", "common.bf16=true",
        "model.attention_heads=4", *tiny,
    )  # fmt: skip
    assert "wer_2 " in second
    stages = [
        convert(tmp_path / name / "checkpoints" / "checkpoint_last.pt", allow_pickle=True)
        for name in ("first", "second")
    ]
    start = daisy.load(corpus / "hubert.safetensors")
    name = "encoder.transformer.layers.1.feed_forward.output_dense.weight"
    of_start, of_first, of_second = (model.backbone.state_dict()[name] for model in (start, *stages))
    assert not torch.equal(of_start, of_first)
    assert torch.equal(of_first.bfloat16(), of_second.bfloat16())  # frozen, and computed in bfloat16
    assert stages[1].ctc.config.layers == (2, 4)
    assert sorted(stages[1].ctc.attentions) == ["2"]
    transcripts = Recogniser(stages[1], Never())([torch.randn(8000)])
    assert transcripts[0].exit_layer == 4


def test_conformer_resumes_exactly_and_accumulates(texts, programs, tmp_path):
    more = (*TINY_CONFORMER, "optimization.update_freq=[2]", "model.split_blocks=[1,2]", "model.decoder_layers=1")
    log = train(programs, texts, tmp_path / "whole", "conformer_mini_ctc", *more, updates=4)
    assert len(re.findall(r"\[train_inner\]", log)) == 4
    train(programs, texts, tmp_path / "resumed", "conformer_mini_ctc", *more, updates=2)
    again = train(programs, texts, tmp_path / "resumed", "conformer_mini_ctc", *more, updates=4)
    assert re.search(r"Loaded checkpoint .*2 updates", again)
    whole, resumed = (read_weights(tmp_path / name) for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole), "resuming is not exact"
    out = tmp_path / "conformer.safetensors"
    said = command(
        programs / "daisy", "convert", tmp_path / "whole" / "checkpoints" / "checkpoint_last.pt", out, "--allow-pickle"
    )
    assert "CTC exits of 7 tokens at layers 2, 4; linear, attention decoders of depth 1" in said
    model = daisy.load(out)
    assert (model.backbone.config.split_blocks, model.tokens.symbols[4:]) == ((1, 2), ("|", "A", "B"))


def test_two_cpu_processes_by_fairseq_train(corpus, texts, programs, tmp_path):
    if not takes_processes_without_gpus():
        pytest.skip("the fork of fairseq does not take torchrun's processes without GPUs")
    log = command(
        BIN / "torchrun", "--nproc_per_node", "2", "--standalone", "--no-python", programs / "fairseq-train", texts,
        "--user-dir", ROOT / "fairseq_plugins", "--task", "audio_finetuning", "--labels", "ltr",
        "--min-sample-size", "4000", "--cpu", "--arch", "daisy_ctc", "--w2v-path", corpus / "hubert.safetensors",
        "--training", "frozen", "--exit-layers", "[2]", "--criterion", "daisy_ctc", "--label-share", "[0.3]",
        "--optimizer", "adam", "--lr", "0.01", "--lr-scheduler", "fixed", "--max-update", "2", "--max-tokens", "40000",
        "--num-workers", "0", "--no-epoch-checkpoints", "--log-format", "simple", "--log-interval", "1",
        "--save-dir", tmp_path / "two", "--distributed-backend", "gloo", "--ddp-backend", "no_c10d",
        "--best-checkpoint-metric", "wer",
    )  # fmt: skip
    assert "'distributed_world_size': 2" in log
    trained = convert(tmp_path / "two" / "checkpoint_last.pt", allow_pickle=True)
    assert trained.ctc.config.layers == (2, 4)
    assert trained.heads is None  # the source has none
    assert all(parameter.isfinite().all() for parameter in trained.parameters())


def test_a_hubert_that_hears_other_audio_is_refused_in_a_line(corpus, texts, programs, tmp_path):
    said = refuse(
        programs / "fairseq-hydra-train", "--config-dir", CONFIG, "--config-name", "daisy_mini_ctc",
        f"common.user_dir={ROOT / 'fairseq_plugins'}", "common.cpu=true", f"task.data={texts}", "task.normalize=true",
        f"hydra.run.dir={tmp_path / 'run'}", f"model.w2v_path={corpus / 'hubert.safetensors'}",
    )  # fmt: skip
    assert "hears audio that is not normalised: task.normalize=false" in said


def test_configurations_name_fields_that_exist():
    import fairseq.utils
    from omegaconf import OmegaConf

    fairseq.utils.import_user_module(argparse.Namespace(user_dir=str(ROOT / "fairseq_plugins")))
    from fairseq_plugins.conformer_model import DaisyConformerCtcConfig
    from fairseq_plugins.ctc_criterion import DaisyCtcCriterionConfig
    from fairseq_plugins.ctc_model import DaisyCtcConfig

    models = {"daisy_ctc": DaisyCtcConfig, "daisy_conformer_ctc": DaisyConformerCtcConfig}
    for name in ("daisy_mini_ctc", "daisy_base_ctc", "conformer_mini_ctc", "conformer_ctc", "wright_published"):
        config = OmegaConf.load(CONFIG / f"{name}.yaml")
        known = models[config.model._name]
        assert set(config.model) - {"_name"} <= set(known.__dataclass_fields__)
        assert set(config.criterion) - {"_name"} <= set(DaisyCtcCriterionConfig.__dataclass_fields__)
        OmegaConf.merge(OmegaConf.structured(known), config.model)  # values of the wrong kind raise


@pytest.mark.parametrize(
    ("name", "split", "millions"), [("conformer_ctc", [], 31.54), ("wright_published", [1, 6], 36.68)]
)
def test_published_configurations_have_the_published_sizes(name, split, millions):
    from types import SimpleNamespace

    from omegaconf import OmegaConf

    from fairseq_plugins.conformer_model import DaisyConformerCtcConfig, make_parts
    from tests.fairseq_plugins.ctc_models import make_task

    config = OmegaConf.load(CONFIG / f"{name}.yaml").model
    cfg = OmegaConf.merge(OmegaConf.structured(DaisyConformerCtcConfig), config, {"split_blocks": split})
    task = make_task(".")
    task.target_dictionary = SimpleNamespace(symbols=[f"s{number}" for number in range(256)], bos=lambda: 0)
    with torch.device("meta"):
        parts = make_parts(cfg, task)
    assert round(sum(p.numel() for p in parts.parameters()) / 1e6, 2) == millions
    published = name == "wright_published"
    assert parts.backbone.config.log == parts.backbone.config.mask_padding == (not published)


def test_the_published_schedule_is_noams_with_an_update_for_each_quarter_of_64():
    from omegaconf import OmegaConf

    config = OmegaConf.load(CONFIG / "wright_published.yaml")
    updates = -(-281_241 // 64) * 4  # of an epoch: 960 h of LibriSpeech are 281,241 utterances
    assert config.dataset.batch_size * config.optimization.update_freq[0] == 64 // 4
    assert config.lr_scheduler.warmup_updates == updates
    peak = (config.model.encoder_embed_dim * updates) ** -0.5
    assert list(config.optimization.lr) == [pytest.approx(peak, rel=1e-3)]
    assert config.optimization.sentence_avg is False


def test_rates_and_masks_of_hubert_ee_are_those_of_fairseqs_fine_tuning():
    import fairseq
    from omegaconf import OmegaConf

    theirs = Path(fairseq.__file__).parent / "examples" / "wav2vec" / "config" / "finetuning"
    if not theirs.is_dir():
        pytest.skip("fairseq is installed without its examples")
    text = (CONFIG / "daisy_base_ctc.yaml").read_text(encoding="utf-8")
    (of_960h,) = re.findall(r"^# 960 h: +(.*)$", text, re.M)
    config = OmegaConf.create(text)
    for name, changes in (("base_100h", []), ("base_960h", of_960h.split())):
        ours, stock = OmegaConf.merge(config, OmegaConf.from_dotlist(changes)), OmegaConf.load(theirs / f"{name}.yaml")
        for key in ("max_update", "lr", "sentence_avg"):
            assert ours.optimization[key] == stock.optimization[key]
        for key in ("mask_prob", "mask_channel_prob", "mask_channel_length", "layerdrop", "activation_dropout"):
            assert ours.model[key] == stock.model[key]
