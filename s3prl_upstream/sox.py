"""The few sox effects that s3prl's tasks use, for systems where torchaudio finds no libsox."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torchaudio
from torch import Tensor

from daisy import audio
from daisy.errors import AudioError


@contextlib.contextmanager
def stand_in() -> Iterator[None]:
    """Replace ``torchaudio.sox_effects.apply_effects_file`` and ``_tensor`` where libsox cannot be loaded.

    Enter it before a task's module is imported, as the module imports the functions by name.
    """
    effects = torchaudio.sox_effects
    stock = effects.apply_effects_file, effects.apply_effects_tensor
    try:
        effects.apply_effects_tensor(torch.zeros(1, 16), 16000, [["gain", "0"]])
    except (RuntimeError, OSError, ImportError):
        effects.apply_effects_file = functools.partial(apply_effects_file, load=torchaudio.load)
        effects.apply_effects_tensor = apply_effects_tensor
    try:
        yield
    finally:
        effects.apply_effects_file, effects.apply_effects_tensor = stock


def apply_effects_file(
    path: str | Path,
    effects: Sequence[Sequence[str]],
    normalize: bool = True,
    channels_first: bool = True,
    load: Callable[..., tuple[Tensor, int]] = torchaudio.load,
) -> tuple[Tensor, int]:
    """Apply a chain of effects to a file.

    Args:
        path: path of the file.
        effects: name and arguments of each effect.
        normalize: torchaudio's, without effect: samples are always floats with full scale 1.
        channels_first: (channels, samples) rather than (samples, channels).
        load: function that reads the file unchanged, at its rate and with all channels.

    Returns:
        The samples, and their rate.

    Raises:
        AudioError: on an effect that is not one of channels (to 1), rate, gain, norm.
    """
    waveform, rate = load(str(path))
    waveform, rate = apply_effects_tensor(waveform, rate, effects)
    return waveform if channels_first else waveform.T, rate


def apply_effects_tensor(
    tensor: Tensor, sample_rate: int, effects: Sequence[Sequence[str]], channels_first: bool = True
) -> tuple[Tensor, int]:
    """Apply a chain of effects to samples, as `apply_effects_file` does.

    Raises:
        AudioError: on an effect that is not one of channels (to 1), rate, gain, norm.
    """
    waveform = tensor if channels_first else tensor.T
    for name, *arguments in effects:
        if name == "channels" and arguments == ["1"]:
            waveform = waveform.mean(0, keepdim=True)
        elif name == "rate":
            target = int(arguments[-1])
            waveform = torch.stack([audio.resample(channel, sample_rate, target) for channel in waveform])
            sample_rate = target
        elif name == "gain" and len(arguments) == 1:
            waveform = waveform * 10 ** (float(arguments[0]) / 20)
        elif name == "norm":
            peak = 10 ** (float(arguments[0] if arguments else 0) / 20)
            waveform = waveform * (peak / waveform.abs().max().clamp(min=torch.finfo(waveform.dtype).tiny))
        else:
            raise AudioError(f"sox effect {' '.join([name, *arguments])}: needs libsox, which torchaudio did not find")
    return waveform if channels_first else waveform.T, sample_rate
