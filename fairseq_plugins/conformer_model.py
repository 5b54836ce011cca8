"""``daisy_conformer_ctc``: a Conformer or Splitformer with exits, from scratch (arXiv:2309.09546, 2506.18035)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, List  # noqa: UP035  OmegaConf 2.0 only reads typing.List

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from torch import Tensor, nn

from daisy import checkpoints
from daisy.errors import UsageError
from daisy.models import AttentionDecoders, Conformer, ConformerConfig, CTCHeadsConfig, DecodersConfig
from fairseq_plugins import recognition
from fairseq_plugins.model import check_waveforms


@dataclass
class DaisyConformerCtcConfig(FairseqDataclass):
    encoder_layers: int = field(default=12, metadata={"help": "Conformer layers"})
    encoder_embed_dim: int = field(default=256, metadata={"help": "width of the layers"})
    encoder_ffn_embed_dim: int = field(default=2048, metadata={"help": "inner width of the feed-forward modules"})
    encoder_attention_heads: int = field(default=8, metadata={"help": "attention heads"})
    depthwise_conv_kernel_size: int = field(default=31, metadata={"help": "frames that the convolutions see"})
    dropout: float = field(default=0.1, metadata={"help": "dropout"})
    block_layers: int = field(default=2, metadata={"help": "layers of a block; an exit is after each block"})
    split_blocks: List[int] = field(
        default_factory=list,
        metadata={"help": "blocks with a parallel layer at half the rate; Splitformer: the first and the last, [1,6]"},
    )
    exit_layers: List[int] = field(
        default_factory=list, metadata={"help": "layers with an exit; the last has one always; []: after each block"}
    )
    decoder_layers: int = field(
        default=0,
        metadata={"help": "Transformer layers of an attention decoder at each exit, beside CTC; 0: no decoders"},
    )
    num_mels: int = field(default=80, metadata={"help": "mel bands"})
    log_mel: bool = field(default=True, metadata={"help": "take the logarithm of the mel energies"})
    normalize_mel: bool = field(
        default=True, metadata={"help": "bring each band of an utterance to zero mean and unit variance"}
    )
    spec_augment: bool = field(default=True, metadata={"help": "mask bands and stretches of time in training"})
    mask_padding: bool = field(
        default=True, metadata={"help": "keep padding out of convolutions, half-rate layers and batch statistics"}
    )


@register_model("daisy_conformer_ctc", dataclass=DaisyConformerCtcConfig)
class DaisyConformerCtc(recognition.Recogniser, BaseFairseqModel):
    """daisy's Conformer and exits, with daisy's names.

    Args:
        cfg: the options.
        parts: the recogniser's parts.
    """

    def __init__(self, cfg: DaisyConformerCtcConfig, parts: checkpoints.Model):
        super().__init__()
        self.cfg = cfg
        self.backbone, self.ctc, self.decoders = parts.backbone, parts.ctc, parts.decoders
        self.train()

    @classmethod
    def build_model(cls, cfg: DaisyConformerCtcConfig, task: Any) -> "DaisyConformerCtc":
        """Build a new model, or that of a checkpoint."""
        if (kept := recognition.recall(task)) is not None:
            return cls(cfg, checkpoints.build(kept))
        parts = make_parts(cfg, task)
        recognition.remember(task, parts)
        return cls(cfg, parts)

    def _apply(self, fn: Callable[[Tensor], Tensor], *rest: Any) -> "DaisyConformerCtc":
        """Cast as any module, except batch norms: running averages in bfloat16 would not change."""
        super()._apply(fn, *rest)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module._apply(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)
        return self

    def forward(
        self, source: Tensor, padding_mask: Tensor | None = None, texts: Tensor | None = None, **others: Any
    ) -> dict[str, Any]:
        """Run all layers and exits.

        Args:
            source: (B, N) waveforms.
            padding_mask: (B, N) bool, True where padded.
            texts: (B, U) int64, the token that begins texts and the tokens before each one to predict; read by
                attention decoders.
            others: other arguments that fairseq passes to a model; ignored.

        Returns:
            See `recognition.Recogniser`; with ``texts`` and attention decoders, also ``next_logits``, by layer
            (B, U, V).
        """
        num_samples = None if padding_mask is None else (~padding_mask).sum(1).cpu()
        states, num_frames = self.backbone(source, num_samples)
        logits = {layer: self.ctc(layer, states[layer], num_frames) for layer in self.ctc.config.layers}
        padding = None
        if padding_mask is not None:
            padding = (torch.arange(states[0].shape[1]) >= num_frames[:, None]).to(source.device)
        output = recognition.make_output(logits, num_frames, padding, self.ctc.config.blank)
        if self.decoders is not None and texts is not None:
            output["next_logits"] = {
                layer: self.decoders(layer, states[layer], num_frames, texts) for layer in self.ctc.config.layers
            }
        return output


def check_exits(exits: CTCHeadsConfig, config: ConformerConfig) -> None:
    """Refuse exits inside blocks with a parallel half-rate layer, where no utterance could exit.

    Raises:
        UsageError: naming these exits.
    """
    inside = [layer for layer in exits.layers if layer not in config.block_ends]
    if config.split_blocks and inside:
        ends = ", ".join(map(str, config.block_ends))
        raise UsageError(f"model.exit_layers: {inside[0]} is inside a block with a half-rate layer; ends are {ends}")


def make_parts(cfg: DaisyConformerCtcConfig, task: Any) -> checkpoints.Model:
    """Make a Conformer with exits and random weights.

    Raises:
        CheckpointError: on an invalid configuration.
        UsageError: where the task normalises waveforms, or has no labels, and as in `check_exits`.
    """
    config = ConformerConfig(
        num_layers=cfg.encoder_layers,
        width=cfg.encoder_embed_dim,
        ffn_width=cfg.encoder_ffn_embed_dim,
        num_heads=cfg.encoder_attention_heads,
        kernel=cfg.depthwise_conv_kernel_size,
        block_layers=cfg.block_layers,
        split_blocks=tuple(cfg.split_blocks),
        dropout=cfg.dropout,
        num_mels=cfg.num_mels,
        log=cfg.log_mel,
        normalize=cfg.normalize_mel,
        spec_augment=cfg.spec_augment,
        mask_padding=cfg.mask_padding,
        sample_rate=task.cfg.sample_rate,
    )
    check_waveforms(task, config.sample_rate, False, "")
    tokens = recognition.read_tokens(task)
    backbone = Conformer(config)
    exits = CTCHeadsConfig(
        layers=recognition.choose_layers(cfg.exit_layers, config.num_layers, config.block_layers),
        width=config.width,
        num_tokens=len(tokens),
        blank=tokens.blank,
    )
    check_exits(exits, config)
    decoders = None
    if cfg.decoder_layers:
        dictionary = task.target_dictionary
        decoders = AttentionDecoders(
            DecodersConfig(
                layers=exits.layers,
                width=config.width,
                num_tokens=len(tokens),
                begin=dictionary.eos(),  # as in fairseq's decoders, which begin a text with the end token
                end=dictionary.eos(),
                num_blocks=cfg.decoder_layers,
                num_heads=cfg.encoder_attention_heads,
                ffn_width=cfg.encoder_ffn_embed_dim,
                dropout=cfg.dropout,
            )
        )
    return checkpoints.Model(
        backbone=backbone,
        ctc=recognition.make_exits(exits),
        tokens=tokens,
        decoders=decoders,
        provenance={"recogniser": "from scratch, fairseq plugin daisy_conformer_ctc"},
    )
