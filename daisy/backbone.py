"""HuBERT, one stage at a time: front end, then layer after layer.

The modules are torchaudio's (``torchaudio.models.wav2vec2_model``, whose parameter names the checkpoint keeps); the
order of computation is ours, so that a caller can stop after any layer, and so that padding never changes a result.

Shapes: ``B`` utterances, ``N`` samples, ``T`` frames, ``C`` channels of the convolutions, ``D`` width, ``L`` layers.
Lengths (``num_samples``, ``num_frames``) are int64 tensors on the CPU: asking for them costs no device synchronisation.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F

from daisy import frames
from daisy.errors import CheckpointError

HUBERT_CONV = ((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2)


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Shape of a HuBERT (arXiv:2106.07447, table I); fairseq's name of each field in brackets."""

    num_layers: int = 12
    """Transformer layers, L [encoder_layers]."""
    width: int = 768
    """Width of the hidden states, D [encoder_embed_dim]."""
    ffn_width: int = 3072
    """Inner width of the feed-forward blocks [encoder_ffn_embed_dim]."""
    num_heads: int = 12
    """Attention heads [encoder_attention_heads]."""
    pre_norm: bool = False
    """Layer norm before each block instead of after it [layer_norm_first]."""
    conv_layers: tuple[frames.ConvLayer, ...] = HUBERT_CONV
    """(channels, kernel, stride) of each convolution [conv_feature_layers]."""
    conv_norm: str = "group"
    """"group": over time, in the first convolution only; "layer": over channels, in all [extractor_mode]."""
    conv_bias: bool = False
    """Whether the convolutions have a bias [conv_bias]."""
    pos_kernel: int = 128
    """Frames that the positional convolution sees [conv_pos]."""
    pos_groups: int = 16
    """Groups of the positional convolution [conv_pos_groups]."""
    normalize: bool = False
    """Whether each waveform is brought to zero mean and unit variance first [task.normalize]."""
    sample_rate: int = 16000
    """Hz."""

    @classmethod
    def base(cls) -> BackboneConfig:
        """HuBERT Base: 95 M parameters."""
        return cls()

    @classmethod
    def large(cls) -> BackboneConfig:
        """HuBERT Large: 316 M parameters."""
        return cls(
            num_layers=24,
            width=1024,
            ffn_width=4096,
            num_heads=16,
            pre_norm=True,
            conv_norm="layer",
            conv_bias=True,
            normalize=True,
        )

    @classmethod
    def xlarge(cls) -> BackboneConfig:
        """HuBERT X-Large: 964 M parameters."""
        return dataclasses.replace(cls.large(), num_layers=48, width=1280, ffn_width=5120)

    @classmethod
    def from_dict(cls, values: dict) -> BackboneConfig:
        """Inverse of ``dataclasses.asdict``, through JSON too.

        Raises:
            CheckpointError: on a field that is unknown or has a value that no HuBERT can have.
        """
        unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise CheckpointError(f"backbone configuration has unknown fields: {', '.join(sorted(unknown))}")
        conv_layers = tuple((int(c), int(k), int(s)) for c, k, s in values.get("conv_layers", HUBERT_CONV))
        config = cls(**{**values, "conv_layers": conv_layers})
        config.validate()
        return config

    def validate(self) -> None:
        """Refuse a shape that no HuBERT can have.

        Raises:
            CheckpointError: naming every field that is wrong.
        """
        wrong = [
            f"{name} must be at least 1, found {getattr(self, name)}"
            for name in ("num_layers", "width", "ffn_width", "num_heads", "pos_kernel", "pos_groups", "sample_rate")
            if getattr(self, name) < 1
        ]
        if not wrong and self.width % self.num_heads:
            wrong.append(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if not wrong and self.width % self.pos_groups:
            wrong.append(f"width {self.width} is not a multiple of pos_groups {self.pos_groups}")
        if self.conv_norm not in ("group", "layer"):
            wrong.append(f'conv_norm must be "group" or "layer", found {self.conv_norm!r}')
        if wrong:
            raise CheckpointError("backbone configuration: " + "; ".join(wrong))

    @property
    def frame_hop(self) -> int:
        """Samples between the starts of two frames."""
        return frames.frame_hop(self.conv_layers)

    @property
    def frame_span(self) -> int:
        """Samples that one frame sees: the shortest usable recording."""
        return frames.frame_span(self.conv_layers)


class Backbone(nn.Module):
    """A HuBERT that is run stage by stage.

        features, num_frames = backbone.front_end(waveforms, num_samples)
        states = backbone.embed(features, num_frames)                    # layer 0
        for l in range(1, backbone.config.num_layers + 1):
            states = backbone.layer(l, states, num_frames)               # layer l

    Layer 0 is the input of the first transformer layer, layer ``l`` the output of layer ``l``; with ``pre_norm`` the
    last layer's is after the final layer norm. That is what s3prl's HuBERT upstream returns
    (s3prl/upstream/hubert/expert.py), and what fairseq's ``extract_features(output_layer=l)`` returns but for the
    final norm. An utterance's result is the same alone and in any batch.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.config = config
        first = config.conv_norm == "group"
        model = torchaudio.models.wav2vec2_model(
            extractor_mode="group_norm" if first else "layer_norm",
            extractor_conv_layer_config=list(config.conv_layers),
            extractor_conv_bias=config.conv_bias,
            encoder_embed_dim=config.width,
            encoder_projection_dropout=0.0,
            encoder_pos_conv_kernel=config.pos_kernel,
            encoder_pos_conv_groups=config.pos_groups,
            encoder_num_layers=config.num_layers,
            encoder_num_heads=config.num_heads,
            encoder_attention_dropout=0.0,
            encoder_ff_interm_features=config.ffn_width,
            encoder_ff_interm_dropout=0.0,
            encoder_dropout=0.0,
            encoder_layer_norm_first=config.pre_norm,
            encoder_layer_drop=0.0,
            aux_num_out=None,
        )
        # Weight norm is for training the backbone; here it would be recomputed at every call.
        nn.utils.parametrize.remove_parametrizations(model.encoder.transformer.pos_conv_embed.conv, "weight")
        self.feature_extractor = model.feature_extractor
        self.encoder = model.encoder
        self.mask_embedding = nn.Parameter(torch.zeros(config.width))
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mask_embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.mask_embedding.dtype

    def front_end(self, waveforms: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms to convolutional features.

        Utterances of one length run as a batch. Others run one by one: statistics over time (the group norm of the
        first convolution, the normalisation of the waveform) are then those of the utterance's own samples, and no
        padding is convolved, which on a CPU is the faster way too.

        Args:
            waveforms: (B, N) float, at ``config.sample_rate``; what lies past an utterance's end is not read.
            num_samples: (B,) int64 on the CPU, each at least ``config.frame_span``.

        Returns:
            features (B, T, C), zero past an utterance's end, and num_frames (B,) int64 on the CPU.
        """
        num_frames = frames.num_frames(num_samples, self.config.conv_layers)
        lengths = num_samples.tolist()
        if min(lengths) == max(lengths):
            return self._convolve(waveforms[:, : lengths[0]]), num_frames
        rows = [self._convolve(waveforms[b : b + 1, :n])[0] for b, n in enumerate(lengths)]  # (T_b, C) each
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), num_frames

    def _convolve(self, waveforms: Tensor) -> Tensor:
        """(B, N) waveforms of one length to (B, T, C) features."""
        if self.config.normalize:
            waveforms = F.layer_norm(waveforms, waveforms.shape[-1:])
        features, _ = self.feature_extractor(waveforms.to(self.dtype), None)
        return features

    def project(self, features: Tensor) -> Tensor:
        """Features (B, T, C) to the transformer's width (B, T, D): where HuBERT's masking replaces frames."""
        return self.encoder.feature_projection(features)

    def position(self, projected: Tensor, num_frames: Tensor) -> Tensor:
        """Projected features (B, T, D) to layer 0 (B, T, D): adds the positional convolution."""
        valid = self._valid(num_frames, projected.shape[1])
        if valid is not None:
            projected = projected * valid[..., None]  # the convolution pads with zeros: so must we
        return self.encoder.transformer._preprocess(projected)

    def embed(self, features: Tensor, num_frames: Tensor) -> Tensor:
        """Features (B, T, C) to layer 0 (B, T, D), the input of the first transformer layer."""
        return self.position(self.project(features), num_frames)

    def layer(self, layer: int, states: Tensor, num_frames: Tensor) -> Tensor:
        """Layer ``layer - 1`` to layer ``layer`` (1 to L), both (B, T, D)."""
        return self.layer_with_feed_forward(layer, states, num_frames)[0]

    def layer_with_feed_forward(self, layer: int, states: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """As `layer`, and the feed-forward block's output before residual and norm, (B, T, D) too.

        The latter is what the published DAISY code reads with ``cls_pred_position: before-norm``.
        """
        block = self.encoder.transformer.layers[layer - 1]
        attended = states + self._attend(block, states, num_frames)
        if self.config.pre_norm:
            feed_forward = block.feed_forward(block.final_layer_norm(attended))
            states = attended + feed_forward
            if layer == self.config.num_layers:
                states = self.encoder.transformer.layer_norm(states)
            return states, feed_forward
        attended = block.layer_norm(attended)
        feed_forward = block.feed_forward(attended)
        return block.final_layer_norm(attended + feed_forward), feed_forward

    def _attend(self, block: nn.Module, states: Tensor, num_frames: Tensor) -> Tensor:
        batch, length, _ = states.shape
        valid = self._valid(num_frames, length)
        mask = None if valid is None else valid[:, None, None, :].expand(batch, 1, length, length)
        queries = block.layer_norm(states) if self.config.pre_norm else states
        return block.attention(queries, attention_mask=mask)[0]

    def _valid(self, num_frames: Tensor, length: int) -> Tensor | None:
        """(B, T) mask of valid frames on the weights' device, or None where every frame is."""
        if int(num_frames.min()) == length:
            return None
        return frames.valid_mask(num_frames, length).to(self.device)
