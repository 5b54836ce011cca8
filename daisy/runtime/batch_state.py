"""Keep the state of one batch in the exit loop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from daisy.models.packing import PackedLayout
from daisy.policies.scores import SCORES, WITHOUT_HEADS, HeadOutputs
from daisy.runtime.layer_runner import LayerOutput


class BatchState:
    """The mutable state of one batch: active utterances, and the states and scores computed so far.

    Args:
        layout: layout of the utterances' frames.
        exits: layers at which utterances may leave; scores are computed at these.
        score_names: names of the scores.
        keep_all: whether the states of all executed layers are kept, or only the last layer's.
        score_stride: stride of the frames that heads look at.
    """

    def __init__(
        self,
        layout: PackedLayout,
        exits: Sequence[int],
        score_names: Sequence[str],
        *,
        keep_all: bool,
        score_stride: int,
    ):
        batch = len(layout)
        self.keep_all, self.score_stride = keep_all, score_stride
        self.exit_numbers = {layer: number for number, layer in enumerate(exits, 1)}
        """Number of each exit, 1 to E, by layer."""
        self.active = torch.arange(batch)
        self.layout = layout
        self.exit_layer = torch.zeros(batch, dtype=torch.int64)
        self._of_heads = sorted(set(score_names) - WITHOUT_HEADS)
        rows = [*self._of_heads, *sorted(set(score_names) & WITHOUT_HEADS)]
        self._rows = {name: row for row, name in enumerate(rows)}
        self._table = torch.full((len(rows), batch, len(exits)), torch.nan)
        self.scores = {name: self._table[self._rows[name]] for name in score_names}
        """(B, E) by name, NaN where not computed."""
        self.kept: list[list[Tensor]] = [[] for _ in range(batch)]
        self.previous_units: Tensor | None = None
        self.draws: Tensor | None = None

    def record_states(self, states: Tensor) -> None:
        """Keep views of a layer's states, (F, D), for the active utterances."""
        for utterance, rows in zip(self.active.tolist(), states.split(self.layout.seqlens_list), strict=True):
            if self.keep_all:
                self.kept[utterance].append(rows)
            else:
                self.kept[utterance] = [rows]

    def record_scores(self, layer: int, output: LayerOutput) -> None:
        """Record layer ``layer``'s scores; this waits for a GPU once."""
        self.previous_units = output.units
        place = self.exit_numbers[layer] - 1
        if output.scores is not None:
            self._table[: len(self._of_heads), self.active, place] = output.scores.cpu()
        if len(self._table) > len(self._of_heads):
            without_heads = HeadOutputs(None, layer, output.states, self.layout, draws=self.draws)
            for name in WITHOUT_HEADS & self.scores.keys():
                self.scores[name][self.active, place] = SCORES[name](without_heads)

    def trajectories(self, names: Iterable[str], exit_number: int) -> dict[str, Tensor]:
        """Return (active, exit_number) scores of the exits so far, by name."""
        table = self._table[:, :, :exit_number]
        if len(self.active) < len(self.exit_layer):
            table = table[:, self.active]
        return {name: table[self._rows[name]] for name in names}

    def leave(self, layer: int, leave: Tensor, states: Tensor) -> Tensor:
        """Remove the utterances that leave, (active,) bool, and return the states of those that stay."""
        if not leave.any():
            return states
        self.exit_layer[self.active[leave]] = layer
        stay = ~leave
        if self.draws is not None:
            self.draws = self.draws[stay]
        if self.previous_units is not None:
            self.previous_units = self.layout.strided(self.score_stride).select_rows(self.previous_units, stay)
        states = self.layout.select_rows(states, stay)
        self.active, self.layout = self.active[stay], self.layout.select(stay)
        return states

    def stack_states(self) -> list[Tensor]:
        """Stack each utterance's kept layers, (layers, T_b, D), without padding."""
        return [torch.stack(kept) for kept in self.kept]
