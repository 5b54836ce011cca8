"""Write a checkpoint that stock fairseq loads without this plugin: to pre-train further, fine-tune or extract from.

    python -m fairseq_plugins.export run/checkpoints/checkpoint_best.pt hubert.pt [--half]

It reads the same files as daisy: a checkpoint of this plugin's pre-training, or a .safetensors file.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.dataclass.configs import FairseqConfig
from fairseq.models.hubert.hubert import HubertConfig
from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig
from omegaconf import OmegaConf

from daisy import _files, checkpoints
from daisy.checkpoints.converters import fairseq
from daisy.checkpoints.weights import refuse_infinite
from daisy.errors import CheckpointError, DaisyError
from daisy.models.config import FAIRSEQ_EPS
from fairseq_plugins.masked import SPECIAL_SYMBOLS
from fairseq_plugins.model import make_backbone_fields, read_backbone


def make_stock_checkpoint(model: checkpoints.Model, half: bool = False) -> dict[str, Any]:
    """Make a checkpoint for fairseq's ``checkpoint_utils``: configuration, weights, dictionary in the task's state.

    Raises:
        CheckpointError: where the model has no prediction head, which fairseq's HuBERT always has, or a weight exceeds
            float16's range.
    """
    if model.final_head is None:
        raise CheckpointError("has no prediction head of its own, and fairseq's HuBERT is built with one")
    cfg = {
        **_plain(FairseqConfig),
        "model": {**_plain(HubertConfig), **make_model_fields(model), "_name": "hubert"},
        "task": {**_plain(HubertPretrainingConfig), **make_task_fields(model), "_name": "hubert_pretraining"},
    }
    units = Dictionary()
    for unit in range(model.final_head.num_units - SPECIAL_SYMBOLS):
        units.add_symbol(str(unit))
    dtype = torch.float16 if half else torch.float32
    weights = {key: value.to(dtype) for key, value in fairseq.weights(model).items()}
    refuse_infinite(weights, dtype)
    return {
        "args": None,
        "cfg": cfg,
        "model": weights,
        "criterion": None,
        "optimizer_history": [
            {"criterion_name": None, "optimizer_name": None, "lr_scheduler_state": {}, "num_updates": 0}
        ],
        "task_state": {"dictionaries": [units]},
        "extra_state": {"epoch": 0},
        "last_optimizer_state": None,
    }


def make_model_fields(model: checkpoints.Model) -> dict[str, Any]:
    """Make the fields of fairseq's model configuration, which daisy's converter can convert back."""
    return {
        **make_backbone_fields(model.hubert.config),
        "final_dim": model.final_head.embeddings.shape[1],
        "logit_temp": model.final_head.temperature,
        "untie_final_proj": False,
    }


def make_task_fields(model: checkpoints.Model) -> dict[str, Any]:
    """Make the fields of fairseq's task configuration."""
    config = model.backbone.config
    return {
        "data": ".",
        "labels": ["km"],
        "label_rate": config.sample_rate / config.frame_hop,
        "sample_rate": config.sample_rate,
        "normalize": config.normalize,
    }


def _plain(config: type) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("target", type=Path)
    parser.add_argument("--half", action="store_true", help="float16 weights")
    arguments = parser.parse_args()
    try:
        model = read_backbone(arguments.source)
        content = make_stock_checkpoint(model, arguments.half)
        _files.write(arguments.target, lambda stream: torch.save(content, stream))
        config = model.backbone.config
        if config.normalize and config.normalize_eps != FAIRSEQ_EPS:
            print(
                f"note: fairseq normalises recordings with epsilon {FAIRSEQ_EPS:g}, this HuBERT with "
                f"{config.normalize_eps:g}: states of quiet ones, below about -40 dBFS, will differ",
                file=sys.stderr,
            )
    except DaisyError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


if __name__ == "__main__":
    main()
