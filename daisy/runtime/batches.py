"""Turn a batch in any of the accepted forms into a list of waveforms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from daisy.errors import AudioError


def split_batch(waveforms: Any, num_samples: Any, mask: Any, min_samples: int) -> list[Tensor]:
    """Check a batch and split it into its waveforms.

    Args:
        waveforms: list of (N_b,) or (1, N_b) tensors or numpy arrays, one waveform (N,), or a padded (B, N) batch.
        num_samples: (B,) lengths of a padded batch.
        mask: (B, N) bool instead of lengths.
        min_samples: least length of each waveform: one frame's.

    Returns:
        (N_b,) float32 each.

    Raises:
        AudioError: on an empty batch, a wrong shape or type, lengths that do not fit, an utterance that is too short,
            or (on the CPU, where the check is cheap) samples that are NaN or infinite.
    """
    if isinstance(waveforms, numpy.ndarray):
        waveforms = _from_numpy(waveforms)
    if isinstance(waveforms, Tensor):
        utterances = _split_tensor(waveforms, num_samples, mask)
    else:
        if num_samples is not None or mask is not None:
            raise AudioError("lengths and masks go with a padded batch; the waveforms of a list have their own")
        if not isinstance(waveforms, Iterable):
            raise AudioError(f"waveforms must be tensors or numpy arrays, found {type(waveforms).__name__}")
        utterances = [_to_waveform(index, waveform) for index, waveform in enumerate(waveforms)]
    if not utterances:
        raise AudioError("an empty batch: give at least one utterance")
    return [_to_float32(index, waveform, min_samples) for index, waveform in enumerate(utterances)]


def _split_tensor(waveforms: Tensor, num_samples: Any, mask: Any) -> list[Tensor]:
    if waveforms.ndim == 1 and num_samples is None and mask is None:
        return [waveforms]
    if waveforms.ndim != 2:
        raise AudioError(
            f"a padded batch must be (utterances, samples), and one waveform (samples,), found {tuple(waveforms.shape)}"
        )
    if num_samples is not None and mask is not None:
        raise AudioError("give either num_samples or a mask, not both")
    if mask is not None:
        num_samples = _lengths_of_mask(mask, waveforms)
    elif num_samples is None:
        if len(waveforms) == 1:
            return [waveforms[0]]
        raise AudioError("a padded batch needs num_samples, the length of each utterance, or a mask")
    lengths = _to_lengths(num_samples)
    if len(lengths) != len(waveforms) or max(lengths, default=0) > waveforms.shape[1] or min(lengths, default=0) < 0:
        raise AudioError(f"num_samples {lengths} does not fit a batch of {tuple(waveforms.shape)}")
    return [waveform[:length] for waveform, length in zip(waveforms, lengths, strict=True)]


def _to_lengths(num_samples: Any) -> list[int]:
    try:
        lengths = torch.as_tensor(num_samples).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise AudioError(f"num_samples must be whole numbers, one an utterance, found {num_samples!r}") from None
    if lengths.ndim != 1 or lengths.is_complex() or not torch.equal(lengths, lengths.long().to(lengths.dtype)):
        raise AudioError(f"num_samples must be whole numbers, one an utterance, found {lengths.tolist()}")
    numbers: list[int] = lengths.long().tolist()
    return numbers


def _lengths_of_mask(mask: Any, waveforms: Tensor) -> Tensor:
    try:
        mask = torch.as_tensor(mask)
    except (TypeError, ValueError, RuntimeError):
        raise AudioError(f"a mask must be a boolean tensor like the batch, found {type(mask).__name__}") from None
    if mask.shape != waveforms.shape:
        raise AudioError(f"a mask of {tuple(mask.shape)} does not fit a batch of {tuple(waveforms.shape)}")
    mask = mask.bool()
    lengths: Tensor = mask.sum(1)
    if not torch.equal(mask, torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]):
        raise AudioError("a mask must be True from each row's first sample on: padding on the right, no gaps")
    return lengths


def _to_waveform(index: int, given: Any) -> Tensor:
    waveform = _from_numpy(given) if isinstance(given, numpy.ndarray) else given
    if not isinstance(waveform, Tensor):
        raise AudioError(f"utterance {index} must be a tensor or a numpy array, found {type(waveform).__name__}")
    if waveform.ndim == 2 and len(waveform) == 1:
        waveform = waveform[0]
    if waveform.ndim != 1:
        raise AudioError(
            f"utterance {index} must be one-dimensional, or (1, samples), found {tuple(waveform.shape)}"
            + (": average its channels, or give one" if waveform.ndim == 2 else "")
        )
    return waveform


def _from_numpy(array: NDArray[Any]) -> Tensor:
    """Convert an array, copied only if torch cannot share it: read-only arrays, or strides that run backwards."""
    try:
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(numpy.require(native, requirements=["C", "W"]))
    except TypeError:
        raise AudioError(f"waveforms must be floating point, full scale 1.0, found {array.dtype}") from None


def _to_float32(index: int, waveform: Tensor, min_samples: int) -> Tensor:
    if len(waveform) < min_samples:
        raise AudioError(f"utterance {index} has {len(waveform)} samples; one frame needs {min_samples}")
    if not waveform.is_floating_point():
        raise AudioError(f"waveforms must be floating point, full scale 1.0, found {waveform.dtype}")
    waveform = waveform.to(torch.float32)
    if waveform.device.type == "cpu" and not waveform.isfinite().all():
        raise AudioError(f"utterance {index} holds samples that are NaN or infinite")
    return waveform
