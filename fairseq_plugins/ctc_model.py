"""``daisy_ctc``: a HuBERT that learns to recognise speech at several layers (HuBERT-EE, arXiv:2204.06328).

Network, masking, layer drop and freezing are fairseq's (fairseq/models/hubert/{hubert,hubert_asr}.py, whose option
names are used); the exits are daisy's.
"""

import contextlib
import dataclasses
from dataclasses import dataclass, field
from typing import Any, List  # noqa: UP035  OmegaConf 2.0 only reads typing.List

import torch
from fairseq.dataclass import ChoiceEnum
from fairseq.models import BaseFairseqModel, register_model
from fairseq.models.hubert.hubert import HubertConfig, HubertModel
from fairseq.models.hubert.hubert_asr import HubertAsrConfig
from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig
from torch import Tensor, nn

from daisy import checkpoints
from daisy.checkpoints.converters import fairseq
from daisy.checkpoints.provenance import drop_notes_of_heads
from daisy.errors import UsageError
from daisy.models import BackboneConfig, CTCHeadsConfig
from fairseq_plugins import recognition
from fairseq_plugins.model import check_waveforms, make_backbone_fields, read_backbone
from fairseq_plugins.pretraining_exits import LayerStates

TRAINING = ChoiceEnum(["joint", "branches", "frozen"])
BRANCHES = ChoiceEnum(["linear", "attention"])
HANDED_ON = ("dropout", "activation_dropout", "attention_dropout", "dropout_input", "feature_grad_mult")
MASKING = (
    "mask_length", "mask_prob", "mask_selection", "mask_other", "no_mask_overlap", "mask_channel_length",
    "mask_channel_prob", "mask_channel_selection", "mask_channel_other", "no_mask_channel_overlap",
)  # fmt: skip


@dataclass
class DaisyCtcConfig(HubertAsrConfig):
    w2v_path: str = field(
        default="",
        metadata={"help": "HuBERT checkpoint: daisy's .safetensors, or any form that daisy convert reads"},
    )
    training: TRAINING = field(
        default="joint",
        metadata={
            "help": "joint: network and exits learn; branches: only the exits before the last, on a fine-tuned "
            "network with its last exit as they are in w2v_path (the second of two stages; the first is joint with "
            "exit_layers of the last layer alone); frozen: only the exits, on the network as it is in w2v_path"
        },
    )
    exit_layers: List[int] = field(
        default_factory=list, metadata={"help": "layers with an exit; the last has one always; []: every second"}
    )
    branch: BRANCHES = field(
        default="linear", metadata={"help": "an exit before the last: linear, or self-attention before it"}
    )
    final_branch: BRANCHES = field(default="linear", metadata={"help": "the last exit"})
    attention_width: int = field(
        default=0, metadata={"help": "width of the branches' queries, keys and values; 0: the network's"}
    )
    attention_heads: int = field(default=8, metadata={"help": "attention heads of a branch"})


@register_model("daisy_ctc", dataclass=DaisyCtcConfig)
class DaisyCtc(recognition.Recogniser, BaseFairseqModel):
    """fairseq's HuBERT, with fairseq's names, and the exits.

    A network that is not trained is in evaluation mode, without masking, as at inference. Its exit heads on units
    and its prediction head stay valid, and are kept in the checkpoint.

    Args:
        cfg: the options.
        parts: the recogniser; its backbone's weights are copied, its other parts become parts of this model.
    """

    def __init__(self, cfg: DaisyCtcConfig, parts: checkpoints.Model):
        super().__init__()
        self.cfg = cfg
        self.training_mode = str(cfg.training)
        self.hubert = make_hubert(cfg, parts.hubert.config)
        self.ctc, self.heads, self.final_head = parts.ctc, parts.heads, parts.final_head
        self.final_dropout = nn.Dropout(cfg.final_dropout)
        self.num_updates = 0
        self._layer_states = LayerStates(self.hubert.encoder)
        for kept in (self.heads, self.final_head):
            if kept is not None:
                kept.requires_grad_(False)
        if self.training_mode != "joint":
            self.hubert.requires_grad_(False)
        if self.training_mode == "branches":
            last = str(self.ctc.config.layers[-1])
            for name, parameter in self.ctc.named_parameters():
                parameter.requires_grad_(name.split(".")[1] != last)
        self.train(self.training)

    @classmethod
    def build_model(cls, cfg: DaisyCtcConfig, task: Any) -> "DaisyCtc":
        """Build a new model, or that of a checkpoint; ``w2v_path`` is then not read."""
        if (kept := recognition.recall(task)) is not None:
            return cls(cfg, checkpoints.build(kept))
        if not cfg.w2v_path:
            raise UsageError("daisy_ctc needs --w2v-path (model.w2v_path): the HuBERT to fine-tune")
        source = read_backbone(cfg.w2v_path)
        if str(cfg.training) == "joint":  # a truncated model gets fairseq's final norm, and learns with it
            source.hubert.config = dataclasses.replace(source.hubert.config, final_norm=True)
        parts = make_parts(cfg, source, task)
        recognition.remember(task, parts)
        model = cls(cfg, parts)
        if not cfg.no_pretrained_weights:
            model.start_from(source)
        return model

    def start_from(self, source: checkpoints.Model) -> None:
        """Copy a HuBERT's weights."""
        weights = fairseq.weights(checkpoints.Model(backbone=source.backbone))
        self.hubert.load_state_dict(weights)

    def set_num_updates(self, num_updates: int) -> None:
        """Keep the number of updates: until ``freeze_finetune_updates``, only the exits learn."""
        super().set_num_updates(num_updates)
        self.num_updates = num_updates

    def train(self, mode: bool = True) -> "DaisyCtc":
        """Switch the mode; a network that is not trained stays in evaluation mode."""
        super().train(mode)
        if self.training_mode != "joint":
            self.hubert.eval()
        for kept in (self.heads, self.final_head):
            if kept is not None:
                kept.eval()
        return self

    def forward(self, source: Tensor, padding_mask: Tensor | None = None, **others: Any) -> dict[str, Any]:
        """Run the network and its exits.

        Args:
            source: (B, N) waveforms.
            padding_mask: (B, N) bool, True where padded.
            others: other arguments that fairseq passes to a model; ignored.

        Returns:
            See `recognition.Recogniser`.
        """
        is_frozen = self.training_mode != "joint" or self.num_updates < self.cfg.freeze_finetune_updates
        with torch.no_grad() if is_frozen else contextlib.nullcontext():
            features, padding = self.hubert.extract_features(
                source, padding_mask, mask=self.cfg.apply_mask and self.hubert.training
            )
        batch, length = features.shape[:2]
        states = self._layer_states.take(length)
        num_frames = torch.full((batch,), length) if padding is None else (~padding).sum(1).cpu()
        logits = {
            layer: self.ctc(layer, self.final_dropout(states[layer - 1]), num_frames)
            for layer in self.ctc.config.layers
        }
        return recognition.make_output(logits, num_frames, padding, self.ctc.config.blank)


def make_hubert(cfg: DaisyCtcConfig, config: BackboneConfig) -> HubertModel:
    """Make fairseq's network of a shape, with random weights and the masks, dropouts and layer drop of fine-tuning."""
    fields = {
        **make_backbone_fields(config),
        **{name: getattr(cfg, name) for name in (*HANDED_ON, *MASKING)},
        "encoder_layerdrop": cfg.layerdrop,
        "required_seq_len_multiple": 1,
    }
    if cfg.apply_mask and 0 < cfg.mask_channel_prob * config.width < cfg.mask_channel_length:
        raise UsageError(
            f"mask_channel_prob {cfg.mask_channel_prob:g} of {config.width} channels is less than one mask of "
            f"mask_channel_length {cfg.mask_channel_length}, which fairseq cannot draw: shorten it"
        )
    task_cfg = HubertPretrainingConfig(data="", sample_rate=config.sample_rate, normalize=config.normalize)
    hubert = HubertModel(HubertConfig(**fields), task_cfg, [None])
    hubert.remove_pretraining_modules()
    if cfg.feature_grad_mult == 0:  # even without gradients, weight decay would shrink it
        hubert.feature_extractor.requires_grad_(False)
    return hubert


def make_parts(cfg: DaisyCtcConfig, source: checkpoints.Model, task: Any) -> checkpoints.Model:
    """Add exits to a HuBERT.

    Raises:
        UsageError: where the task's audio does not suit the HuBERT, or a second stage does not start from a first one.
        CheckpointError: where fairseq's network of its shape computes differently.
    """
    config, tokens = source.hubert.config, recognition.read_tokens(task)
    fairseq.check_fits(config)
    check_waveforms(task, config.sample_rate, config.normalize, f"{cfg.w2v_path}: ")
    exits = recognition.make_exits(
        CTCHeadsConfig(
            layers=recognition.choose_layers(cfg.exit_layers, config.num_layers),
            width=config.width,
            num_tokens=len(tokens),
            blank=tokens.blank,
            branch=str(cfg.branch),
            final_branch=str(cfg.final_branch),
            attention_width=cfg.attention_width or None,
            num_heads=cfg.attention_heads,
        )
    )
    taken = recognition.take_over_exits(exits, source, tokens)
    mode = str(cfg.training)
    if mode == "branches" and config.num_layers not in taken:
        raise UsageError(
            f"{cfg.w2v_path}: training=branches is the second stage, and needs the last exit of the first one, of the "
            "same tokens: train with exit_layers of the last layer alone before"
        )
    is_as_before = mode != "joint"
    provenance = source.provenance if is_as_before else drop_notes_of_heads(source.provenance)
    return checkpoints.Model(
        backbone=source.backbone,
        ctc=exits,
        tokens=tokens,
        heads=source.heads if is_as_before else None,
        final_head=source.final_head if is_as_before else None,
        policies=source.policies if is_as_before else {},
        provenance={**provenance, "recogniser": f"{mode}, fairseq plugin daisy_ctc"},
    )
