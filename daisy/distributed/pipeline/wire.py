"""Number formats of utterances on links between workers.

States: float32, bfloat16, or int8 with a scale for each frame. Waveforms: float32 with float32 states, otherwise int16,
in which most were recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from daisy.distributed.pipeline.workload import BYTES_PER_VALUE, Wire
from daisy.errors import UsageError, unknown_name

INT8_MAX = 127
INT16_SCALE = 32768
"""Divisor of 16-bit samples, the same as in decoders: 16-bit recordings are restored exactly."""


@dataclass(frozen=True, kw_only=True)
class PackedStates:
    """States of an utterance, packed for a link."""

    wire: Wire
    values: NDArray[Any]
    """Values (T, D): float32; the bits of bfloat16 as int16; or int8."""
    scales: NDArray[numpy.float32] | None = None
    """Scales (T,) of int8, by which a frame's values are multiplied."""

    @property
    def num_bytes(self) -> int:
        """Bytes that go over the link."""
        return self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)


def pack_waveform(waveform: Tensor, wire: Wire) -> NDArray[Any]:
    """Pack a waveform (N,) for a link."""
    samples = waveform.detach().cpu().float()
    if wire != "float32":
        samples = (samples * INT16_SCALE).round().clamp(-INT16_SCALE, INT16_SCALE - 1).to(torch.int16)
    return samples.numpy()


def unpack_waveform(packed: NDArray[Any]) -> Tensor:
    """Undo `pack_waveform`: (N,) float32."""
    samples = torch.from_numpy(numpy.array(packed))
    return samples.float() / INT16_SCALE if samples.dtype == torch.int16 else samples


def pack_states(states: Tensor, wire: Wire) -> PackedStates:
    """Pack states (T, D) for a link.

    In int8 each frame's largest absolute value becomes 127 (ours; the paper's learnt bottleneck is not implemented).

    Raises:
        UsageError: if the format is unknown.
    """
    states = states.detach().cpu()
    if wire == "float32":
        return PackedStates(wire=wire, values=states.float().numpy())
    if wire == "bfloat16":
        return PackedStates(wire=wire, values=states.bfloat16().contiguous().view(torch.int16).numpy())
    if wire == "int8":
        states = states.float()
        scales = states.abs().amax(1).clamp(min=1e-30) / INT8_MAX
        values = (states / scales[:, None]).round().to(torch.int8)
        return PackedStates(wire=wire, values=values.numpy(), scales=scales.numpy())
    raise UsageError(unknown_name("wire", wire, BYTES_PER_VALUE))


def unpack_states(packed: PackedStates) -> Tensor:
    """Undo `pack_states`, except for rounding: (T, D) float32, or bfloat16 if packed so."""
    values = torch.from_numpy(numpy.array(packed.values))  # arrays from an object store are read-only
    if packed.wire == "bfloat16":
        return values.view(torch.bfloat16)
    if packed.scales is not None:
        return values.float() * torch.from_numpy(numpy.array(packed.scales))[:, None]
    return values
