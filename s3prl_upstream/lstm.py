"""Run packed LSTMs fast on CPUs, where PyTorch's own backward pass takes time quadratic in the number of frames.

PyTorch runs a packed sequence on a CPU frame by frame, and each frame's gradient is a tensor as large as the whole
sequence. Padded sequences go to oneDNN, which runs all frames in one call. Here packed sequences are padded. For the
reverse direction each utterance is reversed by itself: its padding comes last and changes none of its frames.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

READ_OUTPUTS_ALONE = ("RNNLayer", "SepRNN")
"""s3prl's modules that run an LSTM on packed sequences and do not read its last states."""


class PaddedLSTM(nn.LSTM):
    """An LSTM that pads packed sequences on CPUs, with the stock outputs and gradients up to rounding.

    Where it pads, it returns None for the last states, which padding would change, and dropout between layers draws
    other masks than stock.
    """

    def forward(self, input: Any, hx: Any = None) -> Any:  # stock name
        on_cpu = isinstance(input, PackedSequence) and input.data.device.type == "cpu"
        if not on_cpu or hx is not None or self.proj_size:
            return super().forward(input, hx)
        padded, lengths = pad_packed_sequence(
            PackedSequence(input.data, input.batch_sizes), batch_first=True
        )  # (B, T, D), the longest first
        reverse = make_reversal(lengths)
        for layer in range(self.num_layers):
            if layer and self.training and self.dropout:
                padded = nn.functional.dropout(padded, self.dropout)
            outputs = [self._run_direction(padded, layer)]
            if self.bidirectional:
                reversed_outputs = self._run_direction(reorder_frames(padded, reverse), layer, "_reverse")
                outputs.append(reorder_frames(reversed_outputs, reverse))
            padded = torch.cat(outputs, -1)
        packed = pack_padded_sequence(padded, lengths, batch_first=True)
        return PackedSequence(packed.data, packed.batch_sizes, input.sorted_indices, input.unsorted_indices), None

    def _run_direction(self, padded: Tensor, layer: int, direction: str = "") -> Tensor:
        """Run one layer in one direction over (B, T, D); return (B, T, H)."""
        names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if self.bias else [])]
        weights = [getattr(self, f"{name}_l{layer}{direction}") for name in names]
        zeros = padded.new_zeros(1, len(padded), self.hidden_size)
        return torch.lstm(padded, (zeros, zeros), weights, self.bias, 1, 0.0, self.training, False, True)[0]


def make_reversal(lengths: Tensor) -> Tensor:
    """Make the order of frames (B, T) that reverses each utterance and leaves its padding where it is."""
    frames = torch.arange(int(lengths.max())).expand(len(lengths), -1)
    last = lengths[:, None] - 1
    return torch.where(frames <= last, last - frames, frames)


def reorder_frames(states: Tensor, order: Tensor) -> Tensor:
    """Take the frames of (B, T, D) in an order (B, T)."""
    return states.gather(1, order[:, :, None].expand(-1, -1, states.shape[2]))


def pad_lstms(model: nn.Module) -> None:
    """Make the LSTMs of s3prl's recognisers and mask estimators `PaddedLSTM`, in place; their weights stay."""
    owners = [module for module in model.modules() if _reads_outputs_alone(type(module))]
    for owner in owners:
        for module in owner.children():
            if type(module) is nn.LSTM:
                module.__class__ = PaddedLSTM


def _reads_outputs_alone(kind: type) -> bool:
    return kind.__name__ in READ_OUTPUTS_ALONE and kind.__module__.startswith("s3prl.")
