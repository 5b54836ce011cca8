"""Whisper's encoder, one stage at a time.

It encodes a window of 30 s, with silence where the recording ends before. All frames are computed in every layer, and
those of the silence are not part of the result. So an utterance's result is the same alone and in any batch.

Shapes use the letters of `daisy.models.hubert`, plus M mel bands and W frames of the window.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from daisy.errors import AudioError, CheckpointError
from daisy.models.lengths import count_frames
from daisy.models.modules import TransformerLayer
from daisy.models.whisper_config import FFT_SIZE, HOP_SAMPLES, WhisperConfig

MAX_HZ = 8000.0
FLOOR, RANGE = 1e-10, 8.0
"""Floor of mel energies before the logarithm; range below the largest to which they are limited, in powers of ten."""


class Whisper(nn.Module):
    """The encoder of a Whisper, run stage by stage, as `daisy.models.Backbone` is.

        features, num_frames = whisper.front_end(waveforms, num_samples)   # (B, W, D)
        states = whisper.embed(features, num_frames)                       # layer 0, of the whole window
        for l in range(1, whisper.config.num_layers + 1):
            states = whisper.layer(l, states, num_frames)                  # layer l, likewise

    Matched behaviour: transformers 4.57, transformers/models/whisper/modeling_whisper.py (``WhisperEncoder``) and
    feature_extraction_whisper.py; the last layer's states are after the final norm, as in ``hidden_states``.

    Args:
        config: shape of the network; the weights are random.

    Raises:
        CheckpointError: on an invalid configuration.

    Example:
        >>> import torch
        >>> from daisy.models import Whisper, WhisperConfig
        >>> whisper = Whisper(WhisperConfig(num_layers=2, width=32, ffn_width=64, num_heads=4))
        >>> states, num_frames = whisper(torch.randn(2, 16000), torch.tensor([16000, 8000]))
        >>> states[-1].shape, num_frames.tolist()
        (torch.Size([2, 1500, 32]), [50, 25])
    """

    def __init__(self, config: WhisperConfig):
        super().__init__()
        config.validate()
        self.config = config
        self.conv1 = nn.Conv1d(config.num_mels, config.width, 3, padding=1)
        self.conv2 = nn.Conv1d(config.width, config.width, 3, stride=2, padding=1)
        self.positions = nn.Parameter(torch.zeros(config.window_frames, config.width))
        shape = config.make_layer_config()
        self.layers = nn.ModuleList(TransformerLayer(shape) for _ in range(config.num_layers))
        self.layer_norm = nn.LayerNorm(config.width)
        self.eval()

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.positions.device

    @property
    def dtype(self) -> torch.dtype:
        """The data type of the weights."""
        return self.positions.dtype

    def forward(self, waveforms: Tensor, num_samples: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Run everything; return the states of layers 0 to L, (B, W, D) each, and the utterances' num_frames (B,)."""
        features, num_frames = self.front_end(waveforms, num_samples)
        return self.run_layers(self.embed(features, num_frames), num_frames), num_frames

    def front_end(self, waveforms: Tensor, num_samples: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Turn waveforms into features of the whole window, utterance by utterance.

        Args:
            waveforms: (B, N) float, at 16 kHz; samples past an utterance's end are not read.
            num_samples: (B,) int64 on the CPU, each at least ``config.frame_span``; None: all are N long.

        Returns:
            features (B, W, D), and num_frames (B,) int64 on the CPU.

        Raises:
            AudioError: on an utterance that is longer than the window.
        """
        lengths = [waveforms.shape[1]] * len(waveforms) if num_samples is None else num_samples.tolist()
        if (longest := max(lengths)) > self.config.max_samples:
            seconds, limit = (samples / self.config.sample_rate for samples in (longest, self.config.max_samples))
            raise AudioError(
                f"lasts {seconds:.1f} s, more than the {limit:g} s that Whisper hears at once", remedy="in_windows"
            )
        mels = torch.stack([self.compute_mel(wave[:length]) for wave, length in zip(waveforms, lengths, strict=True)])
        x = F.gelu(self.conv2(F.gelu(self.conv1(mels))))
        return x.transpose(1, 2), count_frames(torch.tensor(lengths), self.config.conv_layers)

    @torch.no_grad()
    def compute_mel(self, waveform: Tensor) -> Tensor:
        """Compute the log-mel spectra (M, 2 W) of the window that holds one waveform (N,)."""
        window, filters = make_window_and_filters(self.config.num_mels, waveform.device)
        padded = F.pad(waveform.float(), (0, self.config.max_samples - len(waveform)))
        spectra = torch.stft(padded, FFT_SIZE, HOP_SAMPLES, window=window, return_complex=True)
        energies = filters @ spectra[:, :-1].abs().square()
        log = energies.clamp(min=FLOOR).log10()
        return ((log.maximum(log.max() - RANGE) + 4) / 4).to(self.dtype)

    def embed(self, features: Tensor, num_frames: Tensor | None) -> Tensor:
        """Add positions to features (B, W, D), which gives layer 0 (B, W, D)."""
        return features + self.positions

    def run_layers(self, states: Tensor, num_frames: Tensor | None) -> list[Tensor]:
        """Run all layers on layer 0, and return the states of layers 0 to L, (B, W, D) each."""
        layers = [states]
        for layer in range(1, self.config.num_layers + 1):
            layers.append(self.layer(layer, layers[-1], num_frames))
        return layers

    def layer(self, layer: int, states: Tensor, num_frames: Tensor | None) -> Tensor:
        """Run layer ``layer`` (1 to L) on the states of the layer before, both (B, W, D), including the silence."""
        mixed: Tensor = self.layers[layer - 1](states)[0]
        if self.config.norms_after(layer):
            mixed = self.layer_norm(mixed)
        return mixed


@lru_cache(maxsize=4)
def make_window_and_filters(num_mels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Make the Fourier window and the mel filters (M, 201): Slaney's scale and area normalisation.

    They are not weights, so a checkpoint does not need to hold them.

    Raises:
        CheckpointError: where torchaudio is missing.
    """
    try:
        from torchaudio.functional import melscale_fbanks
    except (ImportError, OSError) as error:
        raise CheckpointError(f"Whisper's spectra need torchaudio ({error})", remedy="recognition") from None
    filters = melscale_fbanks(
        FFT_SIZE // 2 + 1, 0.0, MAX_HZ, num_mels, int(2 * MAX_HZ), norm="slaney", mel_scale="slaney"
    )
    return torch.hann_window(FFT_SIZE).to(device), filters.T.contiguous().to(device)
