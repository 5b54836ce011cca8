"""Teachers: networks of other people, whose states at HuBERT's frames are clustered into units (as in DiceHuBERT).

A teacher's frames are put to HuBERT's by time: frame t of a HuBERT hears the samples around 320 t + 200 (at 16 kHz), and
gets the teacher's frame whose centre lies nearest.

Source of the idea: arXiv:2507.02911.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from daisy.errors import UsageError
from daisy.models.lengths import HUBERT_CONV, count_frames

SAMPLE_RATE = 16000
FRAME_HOP, FRAME_CENTRE = 320, 200
"""Samples from one frame of HuBERT to the next, and to the middle of the first (its span is 400)."""


class Teacher(Protocol):
    """Computes states of recordings at HuBERT's frames."""

    def group(self, num_samples: Sequence[int]) -> Iterator[list[int]]:
        """Yield the indices of recordings that are computed together, in order."""

    def __call__(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Compute the states of a group: (N_b,) waveforms at 16 kHz to (T_b, D), T_b as many as HuBERT has frames."""


class WhisperTeacher:
    """A Whisper encoder's layer. Its windows last 30 s whatever they hold, so short recordings share one.

    They lie one after the other with silence between; what is said in one may change the states of its neighbours a
    little. A recording that is longer than a window is heard in pieces that overlap.

    Args:
        encoder: of ``transformers.WhisperModel``, in any precision, on any device.
        layer: 1 to its last; layers above are not computed.
        gap_sec: silence between recordings.
        context_sec: by which pieces of a long recording overlap on either side.
        bfloat16: multiply in bfloat16, half of the time where the processor has it.

    Raises:
        UsageError: on a layer that it does not have.
    """

    def __init__(
        self, encoder: Any, layer: int, *, gap_sec: float = 0.4, context_sec: float = 1.0, bfloat16: bool = False
    ):
        from transformers import WhisperFeatureExtractor

        num_layers = len(encoder.layers)
        if not 1 <= layer <= num_layers:
            raise UsageError(f"the teacher has layers 1 to {num_layers}, found layer {layer}")
        self.encoder, self.layer = encoder.eval(), layer
        self.encoder.layers, self.encoder.layer_norm = self.encoder.layers[:layer], torch.nn.Identity()
        self.mel = WhisperFeatureExtractor(feature_size=encoder.config.num_mel_bins)
        self.gap, self.context = int(gap_sec * SAMPLE_RATE), int(context_sec * SAMPLE_RATE) // FRAME_HOP * FRAME_HOP
        self.window, self.bfloat16 = self.mel.n_samples, bfloat16

    def group(self, num_samples: Sequence[int]) -> Iterator[list[int]]:
        """Yield recordings that fit into a window, in order; one that needs several windows is by itself."""
        group: list[int] = []
        end = 0
        for index, length in enumerate(num_samples):
            if group and end + self._place(length) > self.window:
                yield group
                group, end = [], 0
            group.append(index)
            end += self._place(length)
        if group:
            yield group

    def _place(self, num_samples: int) -> int:
        """Samples that a recording takes up in a window, silence and rounding up to frames included."""
        return -(-(num_samples + self.gap) // FRAME_HOP) * FRAME_HOP

    def __call__(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Compute the states of a group, (T_b, D) float32 on the CPU."""
        if len(waveforms) == 1 and self._place(len(waveforms[0])) > self.window:
            return [self._hear_in_pieces(waveforms[0])]
        window = torch.zeros(self.window)
        starts, start = [], 0
        for waveform in waveforms:
            window[start : start + len(waveform)] = waveform
            starts.append(start)
            start += self._place(len(waveform))
        states = self._hear(window)
        return [self._take(states, start, len(waveform)) for start, waveform in zip(starts, waveforms, strict=True)]

    def _hear_in_pieces(self, waveform: Tensor) -> Tensor:
        """Compute a long recording's states: pieces overlap, and where they do, the one that hears more counts."""
        num_frames = count_frames(len(waveform), HUBERT_CONV)
        step = (self.window - 2 * self.context) // FRAME_HOP * FRAME_HOP
        parts = []
        for begin in range(0, num_frames * FRAME_HOP, step):
            first = max(0, begin - self.context)
            piece = torch.zeros(self.window)
            heard = waveform[first : first + self.window]
            piece[: len(heard)] = heard
            count = min(step // FRAME_HOP, num_frames - begin // FRAME_HOP)
            parts.append(self._take_frames(self._hear(piece), begin - first, count))
        return torch.cat(parts)

    @torch.no_grad()
    def _hear(self, window: Tensor) -> Tensor:
        """Run one window (30 s of samples) to (1500, D)."""
        weight = self.encoder.conv1.weight
        features = self.mel(window.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        with torch.autocast(weight.device.type, torch.bfloat16, enabled=self.bfloat16):
            states: Tensor = self.encoder(features.to(weight)).last_hidden_state[0]
        return states.float().cpu()

    def _take(self, states: Tensor, start: int, num_samples: int) -> Tensor:
        return self._take_frames(states, start, count_frames(num_samples, HUBERT_CONV))

    def _take_frames(self, states: Tensor, start: int, count: int) -> Tensor:
        """The states nearest to HuBERT's frames of what begins at sample ``start``: Whisper's are centred at 320 t."""
        centres = start + FRAME_CENTRE + FRAME_HOP * torch.arange(count)
        nearest: Tensor = states[((centres + FRAME_HOP // 2) // FRAME_HOP).clamp(max=len(states) - 1)]
        return nearest


def load_whisper(path: str | Path, layer: int, device: str = "cpu", *, bfloat16: bool = False) -> WhisperTeacher:
    """Load a Whisper encoder from a folder of transformers, or by its name on the hub.

    Args:
        path: folder or name.
        layer: 1 to its last.
        device: to run on.

    Raises:
        UsageError: where it is no Whisper, lacks weights of the encoder, or transformers is missing.
    """
    try:
        from transformers import WhisperModel
    except ModuleNotFoundError:
        raise UsageError("a teacher of transformers needs transformers: pip install 'daisy-speech[hf]'") from None
    model, report = WhisperModel.from_pretrained(str(path), output_loading_info=True)
    missing = [key for key in report["missing_keys"] if key.startswith("encoder.")]
    if missing:
        raise UsageError(f"{path}: lacks weights of a Whisper encoder: {', '.join(sorted(missing)[:3])}")
    return WhisperTeacher(model.encoder.to(device), layer, bfloat16=bfloat16)
