"""HuBERT, one stage at a time: the front end, then one layer after the other.

The order of computation is our own, so that a caller can stop after any layer and padding never changes a result.

Shapes: ``B`` utterances, ``N`` samples, ``T`` frames, ``C`` channels of the convolutions, ``D`` width, ``L`` layers.
Lengths (``num_samples``, ``num_frames``) are int64 tensors on the CPU: reading them needs no device synchronisation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from daisy.models.config import BackboneConfig
from daisy.models.lengths import count_frames, make_valid_mask
from daisy.models.modules import Encoder, FeatureExtractor


class Backbone(nn.Module):
    """A HuBERT, or a network of its kin (wav2vec 2.0, WavLM, data2vec), that is run stage by stage.

        states, num_frames = backbone(waveforms, num_samples)            # layers 0 to L

    or, equivalently,

        features, num_frames = backbone.front_end(waveforms, num_samples)
        states = backbone.embed(features, num_frames)                    # layer 0
        for l in range(1, backbone.config.num_layers + 1):
            states = backbone.layer(l, states, num_frames)               # layer l

    Layer 0 is the input of the first transformer layer, layer ``l`` the output of layer ``l``; with ``pre_norm``, the
    last layer's output is after the final layer norm. This is what s3prl's HuBERT upstream returns
    (s3prl/upstream/hubert/expert.py), and what fairseq's ``extract_features(output_layer=l)`` returns, except for the
    final norm. An utterance's result is the same alone and in any batch.

    Args:
        config: shape of the network; the weights are random.

    Raises:
        CheckpointError: on an invalid configuration.

    Example:
        >>> import torch
        >>> from daisy import Backbone, BackboneConfig
        >>> backbone = Backbone(BackboneConfig(num_layers=2, width=32, ffn_width=64, num_heads=4))
        >>> states, num_frames = backbone(torch.randn(2, 16000), torch.tensor([16000, 8000]))
        >>> len(states), states[-1].shape, num_frames.tolist()
        (3, torch.Size([2, 49, 32]), [49, 24])
    """

    def __init__(self, config: BackboneConfig):
        super().__init__()
        config.validate()
        self.config = config
        self.feature_extractor = FeatureExtractor(config)
        self.encoder = Encoder(config)
        self.mask_embedding = nn.Parameter(torch.zeros(config.width))
        self.eval()

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.mask_embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """The data type of the weights."""
        return self.mask_embedding.dtype

    def forward(self, waveforms: Tensor, num_samples: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Run all layers.

        Args:
            waveforms: (B, N) float, at ``config.sample_rate``; samples past an utterance's end are not read.
            num_samples: (B,) int64 on the CPU, each at least ``config.frame_span``; None: all are N long, and
                nothing depends on lengths, as ``torch.export`` requires.

        Returns:
            The states of layers 0 to L, (B, T, D) each, meaningless past an utterance's end; and num_frames,
            (B,) int64 on the CPU.
        """
        features, num_frames = self.front_end(waveforms, num_samples)
        valid_frames = None if num_samples is None else num_frames
        return self.run_layers(self.embed(features, valid_frames), valid_frames), num_frames

    def front_end(self, waveforms: Tensor, num_samples: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Turn waveforms into convolutional features.

        Utterances of equal length run as a batch. Others run one by one: statistics over time (the group norm of the
        first convolution, the normalisation of the waveform) are then those of the utterance's own samples, and no
        padding is convolved, which is also faster on a CPU.

        Args:
            waveforms: (B, N) float, at ``config.sample_rate``; samples past an utterance's end are not read.
            num_samples: (B,) int64 on the CPU, each at least ``config.frame_span``; None: all are N long.

        Returns:
            features (B, T, C), zero past an utterance's end, and num_frames (B,) int64 on the CPU.
        """
        if num_samples is None:
            count = count_frames(waveforms.shape[1], self.config.conv_layers)
            return self._convolve(waveforms), torch.full((len(waveforms),), count)
        num_frames = count_frames(num_samples, self.config.conv_layers)
        lengths = num_samples.tolist()
        if min(lengths) == max(lengths):
            return self._convolve(waveforms[:, : lengths[0]]), num_frames
        rows = [self._convolve(waveforms[b : b + 1, :n])[0] for b, n in enumerate(lengths)]  # (T_b, C) each
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), num_frames

    def _convolve(self, waveforms: Tensor) -> Tensor:
        """Compute features (B, T, C) of waveforms (B, N) of equal length."""
        if self.config.normalize:
            waveforms = F.layer_norm(waveforms, waveforms.shape[-1:], eps=self.config.normalize_eps)
        features: Tensor = self.feature_extractor(waveforms.to(self.dtype))
        return features

    def project(self, features: Tensor) -> Tensor:
        """Project features (B, T, C) to the transformer's width (B, T, D), on which HuBERT's masking operates."""
        projected: Tensor = self.encoder.feature_projection(features)
        return projected

    def position(self, projected: Tensor, num_frames: Tensor | None) -> Tensor:
        """Add the positional convolution to projected features (B, T, D), which gives layer 0 (B, T, D).

        Args:
            projected: output of `project`.
            num_frames: (B,) int64 on the CPU; None where no utterance is padded.
        """
        valid = self._valid(num_frames, projected.shape[1])
        if valid is not None:
            projected = projected * valid[..., None]  # the convolution pads with zeros, so padding frames must be zero
        transformer = self.encoder.transformer
        positioned: Tensor = projected + transformer.pos_conv_embed(projected, valid)
        if self.config.pre_norm:
            return positioned
        normed: Tensor = transformer.layer_norm(positioned)
        return normed

    def embed(self, features: Tensor, num_frames: Tensor | None) -> Tensor:
        """Turn features (B, T, C) into layer 0 (B, T, D), the input of the first transformer layer."""
        return self.position(self.project(features), num_frames)

    def run_layers(self, states: Tensor, num_frames: Tensor | None) -> list[Tensor]:
        """Run all layers on layer 0, and return the states of layers 0 to L, (B, T, D) each."""
        layers = [states]
        for layer in range(1, self.config.num_layers + 1):
            layers.append(self.layer(layer, layers[-1], num_frames))
        return layers

    def layer(self, layer: int, states: Tensor, num_frames: Tensor | None) -> Tensor:
        """Run layer ``layer`` (1 to L) on the states of the layer before, both (B, T, D)."""
        return self.layer_with_feed_forward(layer, states, num_frames)[0]

    def layer_with_feed_forward(self, layer: int, states: Tensor, num_frames: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run a layer as `layer` does, and return its feed-forward block's output too.

        This output is taken before residual and norm, (B, T, D); the published DAISY code reads it with
        ``cls_pred_position: before-norm``.
        """
        length = states.shape[1]
        valid = self._valid(num_frames, length)
        mask = None if valid is None else valid[:, None, None, :].expand(-1, 1, length, length)
        transformer = self.encoder.transformer
        bias = None if transformer.rel_attn_embed is None else transformer.rel_attn_embed(length)
        states, feed_forward = transformer.layers[layer - 1](states, mask, bias)
        if self.config.norms_after(layer):
            states = transformer.layer_norm(states)
        return states, feed_forward

    def _valid(self, num_frames: Tensor | None, length: int) -> Tensor | None:
        """Return a (B, T) mask of valid frames on the weights' device, or None where all are valid."""
        if num_frames is None or int(num_frames.min()) == length:
            return None
        return make_valid_mask(num_frames, length).to(self.device)
