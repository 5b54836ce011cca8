"""``daisy_hubert``: a frozen HuBERT with trainable exit heads."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from torch import Tensor

from daisy import checkpoints
from daisy.checkpoints.converters import convert
from daisy.checkpoints.converters.plugin import STATE_KEY
from daisy.checkpoints.format import ASSETS
from daisy.errors import CheckpointError, UsageError
from daisy.models import Backbone, BackboneConfig, LayerLosses
from daisy.models.head_losses import compute_head_losses
from daisy.models.heads import ExitHeads, HeadsConfig
from fairseq_plugins.compatibility import mask_indices


@dataclass
class DaisyHubertConfig(FairseqDataclass):
    hubert_path: str = field(
        default="",
        metadata={"help": "HuBERT checkpoint: daisy's .safetensors, or any form that daisy convert reads"},
    )
    mask_prob: float = field(
        default=0.0,
        metadata={"help": "share of frames masked while the heads learn; 0: as at inference, every frame is seen"},
    )
    mask_length: int = field(default=10, metadata={"help": "frames in a masked span"})
    no_regressors: bool = field(default=False, metadata={"help": "train no loss regressors beside the classifiers"})


@register_model("daisy_hubert", dataclass=DaisyHubertConfig)
class DaisyHubert(BaseFairseqModel):
    """daisy's backbone, frozen and in evaluation mode, with exit heads, which alone have gradients.

    The configuration of backbone and heads is kept in the task's state, so that a checkpoint loads without the original
    file of the backbone.
    """

    def __init__(self, cfg: DaisyHubertConfig, parts: checkpoints.Model):
        super().__init__()
        self.cfg = cfg
        self.backbone, self.heads, self.final_head = parts.backbone, parts.heads, parts.final_head
        self.ctc, self.decoders = parts.ctc, parts.decoders  # a recogniser stays one
        for frozen in (self.backbone, self.final_head, self.ctc, self.decoders):
            if frozen is not None:
                frozen.requires_grad_(False)

    @classmethod
    def build_model(cls, cfg: DaisyHubertConfig, task: Any) -> "DaisyHubert":
        if STATE_KEY in task.state.state_dict:
            return cls(cfg, checkpoints.build(task.state.state_dict[STATE_KEY]))
        parts = read_backbone(cfg.hubert_path)
        # The backbone itself normalises its input, if required.
        check_waveforms(task, parts.backbone.config.sample_rate, False, f"{cfg.hubert_path}: ")
        if cfg.mask_prob and not isinstance(parts.backbone, Backbone):
            raise UsageError("mask_prob is for HuBERT and its kin, whose pre-training masks frames: leave it 0")
        parts.heads = ExitHeads(
            HeadsConfig(
                num_layers=parts.backbone.config.num_layers,
                width=parts.backbone.config.width,
                num_units=find_num_units(parts, task),
                regressors=not cfg.no_regressors,
            )
        )
        parts.policies = {}  # they were for other heads
        if task.dictionaries:
            parts.final_head = None  # its units are not those of the labels
        task.state.merge_state_dict({STATE_KEY: parts.config()})
        return cls(cfg, parts)

    def train(self, mode: bool = True) -> "DaisyHubert":
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(
        self,
        source: Tensor,
        num_samples: Tensor,
        labels: Tensor | None,
        label_rate: float,
        noisy_source: Tensor | None,
        mask_seed: int,
    ) -> LayerLosses:
        """Run one step.

        Args:
            source: (B, N) waveforms, which are also the teacher's input.
            num_samples: (B,) int64 on the CPU.
            labels: (B, M) int64 units from the label files, -1 where there is none; None: the teacher's units.
            label_rate: labels per second.
            noisy_source: (B, N) waveforms that the heads learn on instead of ``source``.
            mask_seed: seed of the masked frames.

        Raises:
            CheckpointError: where the teacher is needed but has no prediction head, or labels have replaced it.
        """
        return compute_head_losses(
            self.backbone,
            self.heads,
            source,
            num_samples,
            teacher=self.teacher_units,
            labels=labels,
            label_rate=label_rate,
            noisy_source=noisy_source,
            draw_mask=partial(self._draw_mask, mask_seed) if self.cfg.mask_prob else None,
        )

    def _draw_mask(self, seed: int, valid: Tensor) -> Tensor:
        return mask_indices(valid, self.cfg.mask_prob, self.cfg.mask_length, seed)

    def teacher_units(self, states: Tensor) -> Tensor:
        """Predict each frame's unit with the backbone's own final head, (B, T).

        Raises:
            CheckpointError: where it has no such head, or labels have replaced it.
        """
        if self.final_head is None:
            raise CheckpointError(
                "there is no prediction head to learn from: train with target=labels, or, where the HuBERT has one of "
                "its own, with target=teacher and no labels (task.labels=[])"
            )
        return self.final_head(states).argmax(-1)


def read_backbone(path: str) -> checkpoints.Model:
    """Read the model to add heads to; the caller drops existing exit heads."""
    if not path:
        raise UsageError("daisy_hubert needs --hubert-path (model.hubert_path): the HuBERT to put heads on")
    if path.endswith(".safetensors") or path in {file.stem for file in ASSETS.glob("*.safetensors")}:
        return checkpoints.load(path)
    return convert(path, allow_pickle=True)  # fairseq itself unpickles what it loads


def make_backbone_fields(config: BackboneConfig) -> dict[str, Any]:
    """Make those fields of fairseq's model configuration that give the network's shape."""
    return {
        "label_rate": config.sample_rate / config.frame_hop,
        "encoder_layers": config.num_layers,
        "encoder_embed_dim": config.width,
        "encoder_ffn_embed_dim": config.ffn_width,
        "encoder_attention_heads": config.num_heads,
        "layer_norm_first": config.pre_norm,
        "conv_feature_layers": str([tuple(layer) for layer in config.conv_layers]),
        "extractor_mode": "layer_norm" if config.conv_norm == "layer" else "default",
        "conv_bias": config.conv_bias,
        "conv_pos": config.pos_kernel,
        "conv_pos_groups": config.pos_groups,
    }


def check_waveforms(task: Any, sample_rate: int, normalize: bool, path: str) -> None:
    """Check that a task's audio has the rate and normalisation that the network expects outside fairseq.

    Raises:
        UsageError: naming the option to change.
    """
    if task.cfg.sample_rate != sample_rate:
        raise UsageError(
            f"{path}takes audio at {sample_rate} Hz, and the task gives it at {task.cfg.sample_rate} Hz "
            f"(task.sample_rate={sample_rate} with recordings of that rate)"
        )
    if bool(task.cfg.normalize) != normalize:
        heard = "normalised" if normalize else "not normalised"
        raise UsageError(f"{path}hears audio that is {heard}: task.normalize={str(normalize).lower()}")


def find_num_units(parts: checkpoints.Model, task: Any) -> int:
    """Find the number of units of the heads: that of the task's labels, if any, else the teacher's.

    Raises:
        CheckpointError: where there is neither.
    """
    if task.dictionaries:
        return len(task.dictionaries[0])
    if parts.final_head is None:
        raise CheckpointError("this HuBERT has no prediction head of its own, and the task brings no labels")
    return parts.final_head.num_units
