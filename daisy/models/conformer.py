"""A Conformer for recognition, one stage at a time, and Splitformer's half-rate layers.

The layers come from torchaudio, imported only here, when a Conformer is made. The order of computation is our own,
so that padding never changes a result: torchaudio's convolves an utterance's last frames with its padding.

Shapes use the letters of `daisy.models.hubert`, plus M mel bands and S spectra (10 ms each).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from daisy.errors import CheckpointError
from daisy.models.conformer_config import ConformerConfig
from daisy.models.lengths import count_frames, make_valid_mask

LOG_FLOOR = 1e-6
"""Added to mel energies before the logarithm; the energies of quiet speech are a thousand times as large."""
FREQUENCY_MASKS, FREQUENCY_MASK_BANDS = 2, 27
TIME_MASKS, TIME_MASK_SHARE = 5, 0.05
"""SpecAugment (arXiv:1904.08779), with time masks as long as a share of the utterance, as in arXiv:1912.05533."""


class Conformer(nn.Module):
    """A Conformer that is run stage by stage, as `daisy.models.Backbone` is.

        features, num_frames = conformer.front_end(waveforms, num_samples)
        states = conformer.embed(features, num_frames)                   # layer 0
        for l in range(1, conformer.config.num_layers + 1):
            states = conformer.layer(l, states, num_frames)              # layer l

    With half-rate layers (Splitformer), the last layer of a block also needs the block's input: `run_layers` and the
    exit loop pass it.

    Matched behaviour, for single utterances and with ``as_published``: early_conformer and Splitformer of
    augustgw/early-exit-transformer.

    Args:
        config: shape of the network; the weights are random.

    Raises:
        CheckpointError: on an invalid configuration, or where torchaudio is missing.

    Example:
        >>> import torch
        >>> from daisy.models import Conformer, ConformerConfig
        >>> conformer = Conformer(ConformerConfig(num_layers=2, width=32, ffn_width=64, num_heads=4)).eval()
        >>> features, num_frames = conformer.front_end(torch.randn(2, 16000), torch.tensor([16000, 8000]))
        >>> features.shape, num_frames.tolist()
        (torch.Size([2, 24, 32]), [24, 12])
    """

    def __init__(self, config: ConformerConfig):
        super().__init__()
        config.validate()
        self.config = config
        self.subsampling = nn.ModuleList(
            nn.Conv1d(channels, config.width, 3, stride=2) for channels in (config.num_mels, config.width)
        )
        self.position_dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(ConformerLayer(config) for _ in range(config.num_layers))
        self.half_rate = nn.ModuleDict({str(block): ConformerLayer(config) for block in config.split_blocks})
        self.eval()

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        device: torch.device = next(self.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The data type of the weights."""
        dtype: torch.dtype = next(self.parameters()).dtype
        return dtype

    def forward(self, waveforms: Tensor, num_samples: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Run everything; return the states of layers 0 to L, (B, T, D) each, and num_frames (B,)."""
        features, num_frames = self.front_end(waveforms, num_samples)
        return self.run_layers(self.embed(features, num_frames), num_frames), num_frames

    def front_end(self, waveforms: Tensor, num_samples: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Turn waveforms into features, utterance by utterance.

        Args:
            waveforms: (B, N) float, at ``config.sample_rate``; samples past an utterance's end are not read.
            num_samples: (B,) int64 on the CPU, each at least ``config.frame_span``; None: all are N long.

        Returns:
            features (B, T, D), zero past an utterance's end, and num_frames (B,) int64 on the CPU.
        """
        lengths = [waveforms.shape[1]] * len(waveforms) if num_samples is None else num_samples.tolist()
        rows = []
        for waveform, length in zip(waveforms, lengths, strict=True):
            mel = self.compute_mel(waveform[:length])
            rows.append(self.subsample(mask_at_random(mel) if self.training and self.config.spec_augment else mel))
        num_frames = count_frames(torch.tensor(lengths), self.config.conv_layers)
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), num_frames

    @torch.no_grad()
    def compute_mel(self, waveform: Tensor) -> Tensor:
        """Compute the (log-)mel spectra of one waveform (N,): (S, M), S = N // hop + 1."""
        from torchaudio.functional import spectrogram

        config = self.config
        window, filters = make_window_and_filters(config, waveform.device)
        power = spectrogram(
            waveform.float(), 0, window, config.fft_size, config.hop_samples, config.window_samples, 2.0, False
        )
        mel: Tensor = power.T @ filters
        if config.log:
            mel = (mel + LOG_FLOOR).log()
        if config.normalize:
            mel = (mel - mel.mean(0)) / (mel.std(0, correction=0) + 1e-5)
        return mel.to(self.dtype)

    def subsample(self, mel: Tensor) -> Tensor:
        """Make a frame from every four spectra: (S, M) or (B, S, M) to (T, D) or (B, T, D)."""
        x = mel.transpose(-1, -2)
        for convolution in self.subsampling:
            x = convolution(x)
        return x.transpose(-1, -2)

    def embed(self, features: Tensor, num_frames: Tensor | None) -> Tensor:
        """Add positions to features (B, T, D), which gives layer 0 (B, T, D)."""
        positions = make_positions(features.shape[1], self.config.width, features.device)
        states: Tensor = self.position_dropout(features + positions.to(features.dtype))
        return states

    def run_layers(self, states: Tensor, num_frames: Tensor | None) -> list[Tensor]:
        """Run all layers on layer 0, and return the states of layers 0 to L, (B, T, D) each."""
        layers = [states]
        for layer in range(1, self.config.num_layers + 1):
            block_input = layers[(layer - 1) // self.config.block_layers * self.config.block_layers]
            layers.append(self.layer(layer, layers[-1], num_frames, block_input))
        return layers

    def layer(self, layer: int, states: Tensor, num_frames: Tensor | None, block_input: Tensor | None = None) -> Tensor:
        """Run layer ``layer`` (1 to L); the last layer of a split block runs the block's half-rate layer too.

        Args:
            layer: number of the layer.
            states: states of the layer before, (B, T, D).
            num_frames: (B,) int64 on the CPU; None where no utterance is padded.
            block_input: (B, T, D), the input of the block; only the last layers of split blocks read it.

        Returns:
            The layer's states, (B, T, D).
        """
        valid = self._make_valid(num_frames, states.shape[1])
        states = self.layers[layer - 1](states, valid)
        block = str(layer // self.config.block_layers)
        if layer % self.config.block_layers == 0 and block in self.half_rate:
            assert block_input is not None
            states = states + self._run_half_rate(block, block_input, num_frames)
        return states

    def _run_half_rate(self, block: str, block_input: Tensor, num_frames: Tensor | None) -> Tensor:
        """Run every second frame through the block's own half-rate layer and repeat each: (B, T, D) to (B, T, D)."""
        halved = block_input[:, ::2]
        counts = (num_frames + 1) // 2 if num_frames is not None and self.config.mask_padding else None
        mixed = self.half_rate[block](halved, self._make_valid(counts, halved.shape[1]))
        repeated: Tensor = torch.repeat_interleave(mixed, 2, dim=1)
        return repeated[:, : block_input.shape[1]]

    def _make_valid(self, num_frames: Tensor | None, length: int) -> Tensor | None:
        """Return a (B, T) mask of valid frames on the weights' device, or None where all are valid."""
        if num_frames is None or int(num_frames.min()) == length:
            return None
        return make_valid_mask(num_frames, length).to(self.device)


class ConformerLayer(nn.Module):
    """torchaudio's layer, with its parameter names, but with padding kept out of its convolution and batch norm.

    Matched behaviour: torchaudio 2.5, torchaudio/models/conformer.py, which gives the same result for unpadded input.

    Args:
        config: shape of the Conformer.
    """

    def __init__(self, config: ConformerConfig):
        super().__init__()
        for name, module in make_torchaudio_layer(config).named_children():
            self.add_module(name, module)
        self.mask_padding = config.mask_padding

    def forward(self, states: Tensor, valid: Tensor | None = None) -> Tensor:
        """Run the layer: (B, T, D) to (B, T, D); ``valid`` (B, T) bool, True where a frame belongs to its utterance."""
        states = states + 0.5 * self.ffn1(states)
        states = states + self._attend(self.self_attn_layer_norm(states), valid)
        states = states + self._convolve(states, valid if self.mask_padding else None)
        states = states + 0.5 * self.ffn2(states)
        normed: Tensor = self.final_layer_norm(states)
        return normed

    def _attend(self, states: Tensor, valid: Tensor | None) -> Tensor:
        by_time = states.transpose(0, 1)  # torchaudio's attention is not batch_first
        mixed, _ = self.self_attn(
            by_time, by_time, by_time, key_padding_mask=None if valid is None else ~valid, need_weights=False
        )
        dropped: Tensor = self.self_attn_dropout(mixed)
        return dropped.transpose(0, 1)

    def _convolve(self, states: Tensor, valid: Tensor | None) -> Tensor:
        """Run the convolution module: (B, T, D) to (B, T, D)."""
        module: Any = self.conv_module
        pointwise, gate, depthwise, norm, *rest = module.sequential
        x = gate(pointwise(module.layer_norm(states).transpose(1, 2)))  # (B, D, T)
        if valid is None:
            x = norm(depthwise(x))
        else:
            x = depthwise(x * valid[:, None])  # the convolution pads with zeros, so padding frames must be zero
            x = norm_valid(norm, x, valid) if self.training else norm(x)
        for part in rest:
            x = part(x)
        mixed: Tensor = x.transpose(1, 2)
        return mixed


def norm_valid(norm: nn.Module, x: Tensor, valid: Tensor) -> Tensor:
    """Batch-normalise (B, D, T) with the statistics of the valid frames (B, T); padding becomes zero."""
    by_frame = x.transpose(1, 2)
    normed: Tensor = norm(by_frame[valid])
    return normed.new_zeros(by_frame.shape).masked_scatter(valid[..., None], normed).transpose(1, 2)


def make_torchaudio_layer(config: ConformerConfig) -> nn.Module:
    """Make a Conformer layer of torchaudio.

    Raises:
        CheckpointError: where torchaudio is missing.
    """
    try:
        from torchaudio.models.conformer import ConformerLayer as TorchaudioLayer
    except (ImportError, OSError) as error:
        raise CheckpointError(f"a Conformer needs torchaudio ({error})", remedy="recognition") from None
    layer: nn.Module = TorchaudioLayer(
        config.width, config.ffn_width, config.num_heads, config.kernel, dropout=config.dropout
    )
    return layer


def mask_at_random(mel: Tensor) -> Tensor:
    """Set random bands and stretches of time of one utterance (S, M) to its mean, as SpecAugment does."""
    from torchaudio.functional import mask_along_axis_iid  # its SpecAugment applies the share to bands too

    mean, masked = float(mel.mean()), mel[None]
    for _ in range(TIME_MASKS):
        masked = mask_along_axis_iid(masked, len(mel), mean, axis=1, p=TIME_MASK_SHARE)
    for _ in range(FREQUENCY_MASKS):
        masked = mask_along_axis_iid(masked, min(FREQUENCY_MASK_BANDS, mel.shape[1] // 2), mean, axis=2)
    return masked[0]


@lru_cache(maxsize=8)
def make_window_and_filters(config: ConformerConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Make the Fourier window and the mel filters (fft_size / 2 + 1, M), with torchaudio's defaults.

    They are not weights, so a checkpoint does not need to hold them.
    """
    from torchaudio.functional import melscale_fbanks

    filters = melscale_fbanks(
        config.fft_size // 2 + 1, 0.0, config.sample_rate / 2, config.num_mels, config.sample_rate
    )
    return torch.hann_window(config.window_samples).to(device), filters.to(device)


def make_positions(length: int, width: int, device: torch.device) -> Tensor:
    """Make sinusoidal positions (T, D) (arXiv:1706.03762, section 3.5): sines at even indices, cosines at odd ones."""
    return _list_positions(max(512, 1 << (length - 1).bit_length()), width, device)[:length]


@lru_cache(maxsize=8)
def _list_positions(length: int, width: int, device: torch.device) -> Tensor:
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1).to(device)
