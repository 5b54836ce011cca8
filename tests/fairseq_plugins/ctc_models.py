"""Tiny recognisers in fairseq, a sample that they learn from, and its loss."""

from types import SimpleNamespace

import torch
from torch.nn import functional as F

import daisy
from daisy.checkpoints.converters import plugin
from tests.conftest import ODD, POST_NORM, tiny_model

LETTERS = "|ABCDEFG"
CONFORMER = {
    "encoder_layers": 4, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 48, "encoder_attention_heads": 4,
    "depthwise_conv_kernel_size": 7, "num_mels": 20, "dropout": 0.0,
}  # fmt: skip


def make_task(folder, **changes):
    from fairseq.data import Dictionary
    from fairseq.tasks.fairseq_task import StatefulContainer

    dictionary = Dictionary()
    for letter in LETTERS:
        dictionary.add_symbol(letter)
    cfg = {"data": str(folder), "labels": "ltr", "sample_rate": 16000, "normalize": False, **changes}
    return SimpleNamespace(target_dictionary=dictionary, cfg=SimpleNamespace(**cfg), state=StatefulContainer())


def make_hubert(folder, config=POST_NORM, source=None, **changes):
    """Make a ``daisy_ctc`` model from a tiny HuBERT, and its task."""
    from omegaconf import OmegaConf

    from fairseq_plugins.ctc_model import DaisyCtc, DaisyCtcConfig

    path = folder / "source.safetensors"
    source = source or tiny_model(config)
    if config is ODD:  # for which fairseq has no projection
        projection = source.backbone.encoder.feature_projection.projection
        projection.weight.data.copy_(torch.eye(config.width))
        projection.bias.data.zero_()
    daisy.save(source, path)
    task = make_task(folder, normalize=config.normalize)
    given = {"w2v_path": str(path), "normalize": config.normalize, "data": "", "exit_layers": [2], **changes}
    cfg = OmegaConf.merge(OmegaConf.structured(DaisyCtcConfig), given)
    torch.manual_seed(0)
    return DaisyCtc.build_model(cfg, task), task


def make_conformer(folder, **changes):
    from omegaconf import OmegaConf

    from fairseq_plugins.conformer_model import DaisyConformerCtc, DaisyConformerCtcConfig

    task = make_task(folder)
    torch.manual_seed(0)
    cfg = OmegaConf.merge(OmegaConf.structured(DaisyConformerCtcConfig), {**CONFORMER, **changes})
    return DaisyConformerCtc.build_model(cfg, task), task


def make_criterion(task, **changes):
    from omegaconf import OmegaConf

    from fairseq_plugins.ctc_criterion import DaisyCtcCriterion, DaisyCtcCriterionConfig

    given = {"sentence_avg": False, **changes}
    return DaisyCtcCriterion(OmegaConf.merge(OmegaConf.structured(DaisyCtcCriterionConfig), given), task)


def make_sample(lengths=(8000, 6400, 4800)):
    generator = torch.Generator().manual_seed(1)
    source = 0.1 * torch.randn(len(lengths), max(lengths), generator=generator)
    padding = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    target = torch.randint(4, 4 + len(LETTERS), (len(lengths), 5), generator=generator)
    target[1, 3:] = 1  # padded
    net_input = {"source": source.masked_fill(padding, 0.0), "padding_mask": padding}
    return {"id": torch.arange(len(lengths)), "net_input": net_input, "target": target, "ntokens": 13}


def convert(model, task):
    """Convert a checkpoint with this model like ``daisy convert``."""
    return plugin.read({"model": model.state_dict(), "task_state": task.state.state_dict})


def compute_ctc(logits, targets, lengths):
    """Compute the CTC loss of each utterance by itself."""
    return torch.stack(
        [
            F.ctc_loss(
                row[:count].float().log_softmax(-1)[:, None], wanted[None], [count], [len(wanted)], reduction="sum"
            )
            for row, wanted, count in zip(logits, targets, lengths, strict=True)
        ]
    )


def labels_of(sample):
    return [row[row > 3] for row in sample["target"]]
