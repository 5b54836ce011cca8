"""Output of an early-exit run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from daisy.models.lengths import make_valid_mask


@dataclass(frozen=True, kw_only=True)
class ExitOutput:
    """Output of an early-exit run, for B utterances of a backbone with L layers.

    ``len(out)`` is B, and ``out[i]`` the output of one utterance, as if it had run alone.

    Example:
        >>> import daisy, torch
        >>> encoder = daisy.load("daisy-mini").encoder("fixed", layer=4)
        >>> out = encoder([torch.zeros(16000), torch.zeros(8000)])
        >>> out.last_hidden_state.shape, out.mask.sum(1).tolist()
        (torch.Size([2, 49, 256]), [49, 24])
        >>> out[1].states[0].shape  # layers 0 to 4
        torch.Size([5, 24, 256])
    """

    exit_layer: Tensor
    """(B,) int64 on the CPU, 1 to L: the last layer executed."""
    num_frames: Tensor
    """(B,) int64 on the CPU."""
    states: list[Tensor]
    """For each utterance, layers 0 to the exit layer: (exit_layer + 1, T_b, D); with ``keep="last"`` (1, T_b, D)."""
    scores: dict[str, Tensor]
    """Each score (B, E) float32 on the CPU, with a column for each exit; NaN where the exit was not reached."""
    exits: tuple[int, ...]
    """The layers of the E exits: 1 to L if every layer has one."""

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, index: int) -> ExitOutput:
        """Return one utterance's output, as a batch of one; negative indices count from the end."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"utterance {index} of a batch of {len(self)}")
        index %= len(self)
        return ExitOutput(
            exit_layer=self.exit_layer[index : index + 1],
            num_frames=self.num_frames[index : index + 1],
            states=[self.states[index]],
            scores={name: values[index : index + 1] for name, values in self.scores.items()},
            exits=self.exits,
        )

    def __iter__(self) -> Iterator[ExitOutput]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def last_hidden_state(self) -> Tensor:
        """(B, T, D): each utterance's states at its exit layer, with zeros past its end."""
        return torch.nn.utils.rnn.pad_sequence([states[-1] for states in self.states], batch_first=True)

    @cached_property
    def mask(self) -> Tensor:
        """(B, T) bool on the states' device: True where a frame belongs to the utterance."""
        return make_valid_mask(self.num_frames, int(self.num_frames.max())).to(self.states[0].device)
