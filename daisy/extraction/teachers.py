"""Teachers: other networks' states at a HuBERT's frames, to be clustered into units (DiceHuBERT, arXiv:2507.02911).

Frames are aligned in time: each frame of HuBERT gets the teacher's frame whose middle is nearest to its own.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor

from daisy.checkpoints.content_digest import ContentDigest
from daisy.errors import UsageError
from daisy.models.lengths import HUBERT_CONV, MIN_SAMPLES, compute_frame_hop, compute_frame_span, count_frames

SAMPLE_RATE = 16000


@dataclass(frozen=True)
class FrameTimes:
    """Times of a network's frames."""

    hop: float
    """Samples at 16 kHz from one frame to the next."""
    middle: float
    """Sample at the middle of the first frame."""


HUBERT_TIMES = FrameTimes(hop=compute_frame_hop(HUBERT_CONV), middle=compute_frame_span(HUBERT_CONV) / 2)


def pick_nearest(states: Tensor, times: FrameTimes, count: int, start: int = 0) -> Tensor:
    """Select the states nearest in time to a HuBERT's frames.

    Args:
        states: states of a teacher, (T, D).
        times: times of their frames.
        count: number of HuBERT's frames.
        start: sample of the teacher's audio at which HuBERT's audio begins.

    Returns:
        (count, D).
    """
    middles = start + HUBERT_TIMES.middle + HUBERT_TIMES.hop * torch.arange(count, dtype=torch.float64)
    # in a tie, the earlier one; torch.round would take the even one
    nearest = torch.ceil((middles - times.middle) / times.hop - 0.5).long()
    return states[nearest.clamp(0, len(states) - 1)]


class Teacher(Protocol):
    """Computes states of recordings at HuBERT's frames."""

    @property
    def width(self) -> int:
        """Width of the states, D."""

    @property
    def min_samples(self) -> int:
        """Number of samples of the shortest usable recording."""

    @property
    def digest(self) -> str:
        """SHA-256 of the weights of all layers and of everything else that decides the states."""

    def fit_together(self, num_samples: Sequence[int]) -> bool:
        """Return whether consecutive recordings with these numbers of samples are computed together."""

    def __call__(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Compute the states of a group: (N_b,) waveforms at 16 kHz to (T_b, D), T_b as many as HuBERT has frames."""


class WaveformTeacher:
    """A layer of a transformers encoder with convolutions on samples: wav2vec 2.0, HuBERT, WavLM, data2vec.

    Args:
        model: a `transformers.PreTrainedModel`, in any precision, on any device.
        layer: layer, from 0, the input of the first layer; layers above the next one are removed from ``model``.
        normalize: whether each recording is normalised to mean 0 and variance 1, as its feature extractor specifies.
        bfloat16: multiply in bfloat16.

    Raises:
        UsageError: if the model does not have the layer, or its input is not samples.
    """

    def __init__(self, model: Any, layer: int, *, normalize: bool, bfloat16: bool = False):
        config = model.config
        kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
        if kernels is None or strides is None or not hasattr(getattr(model, "encoder", None), "layers"):
            raise UsageError(unknown_kind(config.model_type))
        check_layer(layer, config.num_hidden_layers, first=0)
        self.model, self.layer, self.normalize, self.bfloat16 = model.eval(), layer, normalize, bfloat16
        convolutions = [(0, kernel, stride) for kernel, stride in zip(kernels, strides, strict=True)]
        self.convolutions = convolutions
        self.width: int = config.hidden_size
        self.times = FrameTimes(hop=compute_frame_hop(convolutions), middle=compute_frame_span(convolutions) / 2)
        self.min_samples = max(MIN_SAMPLES, compute_frame_span(convolutions))
        self.digest = _digest_module(model, kind=config.model_type, normalize=normalize)
        self._is_last = layer == config.num_hidden_layers
        # One more layer is run: in some of these networks the last layer's states are after the final norm.
        model.encoder.layers = model.encoder.layers[: layer + 1]

    def fit_together(self, num_samples: Sequence[int]) -> bool:
        """Return whether there is one recording only: padding changes the states of many of these networks."""
        return len(num_samples) == 1

    @torch.no_grad()
    def __call__(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Compute states, (T_b, D) float32 on the CPU.

        Raises:
            UsageError: if the network's number of frames differs from that of its convolutions.
        """
        return [self._hear(waveform) for waveform in waveforms]

    def _hear(self, waveform: Tensor) -> Tensor:
        parameter = next(self.model.parameters())
        if self.normalize:  # as Wav2Vec2FeatureExtractor
            waveform = (waveform - waveform.mean()) / torch.sqrt(waveform.var(correction=0) + 1e-7)
        with torch.autocast(parameter.device.type, torch.bfloat16, enabled=self.bfloat16):
            output = self.model(waveform[None].to(parameter), output_hidden_states=True)
        # Whether the last of all states are after the final norm depends on transformers' version; these are.
        at_end = self._is_last and not getattr(self.model.config, "add_adapter", False)
        states = output.last_hidden_state[0] if at_end else output.hidden_states[self.layer][0]
        if len(states) != count_frames(len(waveform), self.convolutions):
            raise UsageError(f"the teacher ({self.model.config.model_type}) makes other frames than its convolutions")
        return pick_nearest(states.float().cpu(), self.times, count_frames(len(waveform), HUBERT_CONV))


GAP_SEC = 0.4
"""Seconds of silence between recordings that share a window of Whisper."""
CONTEXT_SEC = 1.0
"""Seconds by which pieces of a long recording overlap on either side."""


class WhisperTeacher:
    """A layer of Whisper's encoder. Its windows last 30 s whatever they hold, so short recordings share one.

    They lie one after the other with silence in between. A recording's position and its neighbours change its states.
    Measured with layer 4 of Whisper base in 100 clusters on spoken digits, another order changes 15 units in 100. For
    .85 of the frames, the digit is the most frequent one of their unit; with a window for each digit it is .75, at 28
    times the cost. In 50 clusters on keywords of 2.6 s, pauses included, another order changes 40 units in 100. A
    recording longer than a window is processed in overlapping pieces.

    Args:
        encoder: encoder of ``transformers.WhisperModel``, in any precision, on any device.
        layer: layer, 1 to the last, before the final norm; layers above are not computed.
        bfloat16: multiply in bfloat16, which takes half of the time on processors that support it.

    Raises:
        UsageError: if the encoder does not have the layer.
    """

    min_samples = MIN_SAMPLES
    times = FrameTimes(hop=320, middle=0)
    """Mel frames are centred at multiples of 160 samples; the second convolution keeps every second one."""

    def __init__(self, encoder: Any, layer: int, *, bfloat16: bool = False):
        from transformers import WhisperFeatureExtractor

        check_layer(layer, len(encoder.layers), first=1)
        self.encoder, self.bfloat16, self.digest = encoder.eval(), bfloat16, _digest_module(encoder, kind="whisper")
        self.encoder.layers, self.encoder.layer_norm = self.encoder.layers[:layer], torch.nn.Identity()
        self.mel = WhisperFeatureExtractor(feature_size=encoder.config.num_mel_bins)  # type: ignore[no-untyped-call]
        self.window, self.width = self.mel.n_samples, int(encoder.config.d_model)
        self.gap, self.context = int(GAP_SEC * SAMPLE_RATE), self._round(int(CONTEXT_SEC * SAMPLE_RATE))

    def fit_together(self, num_samples: Sequence[int]) -> bool:
        """Return whether recordings share a window; one that needs several windows is computed alone."""
        return len(num_samples) == 1 or sum(map(self._place, num_samples)) <= self.window

    def _round(self, num_samples: int) -> int:
        """Round up to whole frames."""
        hop = int(self.times.hop)
        return -(-num_samples // hop) * hop

    def _place(self, num_samples: int) -> int:
        """Count the samples of a recording in a window, including the silence after it."""
        return self._round(num_samples + self.gap)

    def __call__(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Compute the states of a group, (T_b, D) float32 on the CPU."""
        if len(waveforms) == 1 and self._place(len(waveforms[0])) > self.window:
            return [self._hear_in_pieces(waveforms[0])]
        window, starts, start = torch.zeros(self.window), [], 0
        for waveform in waveforms:
            window[start : start + len(waveform)] = waveform
            starts.append(start)
            start += self._place(len(waveform))
        states = self._hear(window)
        counts = [count_frames(len(waveform), HUBERT_CONV) for waveform in waveforms]
        return [pick_nearest(states, self.times, count, start) for count, start in zip(counts, starts, strict=True)]

    def _hear_in_pieces(self, waveform: Tensor) -> Tensor:
        """Compute a long recording's states; of each piece, use those with enough context on both sides."""
        num_frames, hop = count_frames(len(waveform), HUBERT_CONV), int(HUBERT_TIMES.hop)
        step = (self.window - 2 * self.context - self._round(1)) // hop
        parts = []
        for first in range(0, num_frames, step):
            begin = max(0, first * hop - self.context)
            heard = waveform[begin : begin + self.window]
            piece = torch.cat([heard, heard.new_zeros(self.window - len(heard))])
            count = min(step, num_frames - first)
            parts.append(pick_nearest(self._hear(piece), self.times, count, first * hop - begin))
        return torch.cat(parts)

    @torch.no_grad()
    def _hear(self, window: Tensor) -> Tensor:
        """Run one window of samples, and return its states (1500, D)."""
        weight = self.encoder.conv1.weight
        features = self.mel(window.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        with torch.autocast(weight.device.type, torch.bfloat16, enabled=self.bfloat16):
            states: Tensor = self.encoder(features.to(weight)).last_hidden_state[0]
        return states.float().cpu()


def check_layer(layer: int, last: int, *, first: int) -> None:
    """Reject a layer that a teacher does not have.

    Raises:
        UsageError: if it is not ``first`` to ``last``.
    """
    if not first <= layer <= last:
        raise UsageError(f"the teacher has layers {first} to {last}, found layer {layer}")


def load_teacher(name: str | Path, layer: int, device: str = "cpu", *, bfloat16: bool = False) -> Teacher:
    """Load a network of transformers as a teacher.

    Args:
        name: folder, or name on the hub.
        layer: layer of its encoder.
        device: device to run on.
        bfloat16: multiply in bfloat16.

    Raises:
        UsageError: if it cannot be loaded, lacks weights of its encoder, is of no known kind, or transformers is
            missing.
    """
    try:
        from transformers import AutoConfig, AutoFeatureExtractor, AutoModel
    except ModuleNotFoundError:
        raise UsageError("this teacher needs transformers: pip install 'daisy-speech[hf]'") from None
    try:
        with _without_warnings():
            config = AutoConfig.from_pretrained(name)
            is_whisper = config.model_type == "whisper"
            if not is_whisper and getattr(config, "conv_kernel", None) is None:
                raise UsageError(unknown_kind(config.model_type))
            model, report = AutoModel.from_pretrained(name, output_loading_info=True)
            extractor = None if is_whisper else AutoFeatureExtractor.from_pretrained(name)  # type: ignore[no-untyped-call]
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise UsageError(f"{name}: cannot be loaded by transformers ({_first_line(error)})") from None
    missing = [key for key in report["missing_keys"] if key.startswith("encoder.") or not is_whisper]
    missing = [key for key in missing if "masked_spec_embed" not in key]
    if missing:
        raise UsageError(f"{name}: lacks weights of its encoder: {', '.join(sorted(missing)[:3])}")
    model = model.float().to(device)
    if is_whisper:
        return WhisperTeacher(model.encoder, layer, bfloat16=bfloat16)
    if (rate := getattr(extractor, "sampling_rate", SAMPLE_RATE)) != SAMPLE_RATE:
        raise UsageError(f"{name}: takes audio at {rate} Hz, and teachers are given {SAMPLE_RATE} Hz")
    normalize = bool(getattr(extractor, "do_normalize", True))
    return WaveformTeacher(model, layer, normalize=normalize, bfloat16=bfloat16)


def unknown_kind(model_type: str) -> str:
    """Return the message that a network cannot be a teacher."""
    return f"models of type {model_type} cannot teach; Whisper and encoders of waveforms (wav2vec 2.0, WavLM, …) can"


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep transformers from printing the unused parts of a model; missing weights raise an error anyway."""
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _digest_module(module: torch.nn.Module, **config: object) -> str:
    return ContentDigest.of(config, module.state_dict())
