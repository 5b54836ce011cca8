"""Run the early-exit loop, the only one in this package."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from daisy.policies import Policy
from daisy.policies.scores import HeadOutputs
from daisy.runtime.batch_state import BatchState
from daisy.runtime.layer_runner import LayerRunner


def run_layers(
    runner: LayerRunner,
    batch: BatchState,
    states: Tensor,
    layers: Iterable[int],
    policy: Policy,
    *,
    observe: Callable[[HeadOutputs], None] | None = None,
    on_layer: Callable[[int], None] | None = None,
) -> Tensor:
    """Run consecutive layers, each utterance until the policy lets it leave.

    Args:
        runner: runner of the layers and their scores.
        batch: state of the batch, in which exits are recorded.
        states: states of the layer before the first, (F, D).
        layers: layers to run, rising.
        policy: policy that decides.
        observe: as in `EarlyExitEncoder.forward`, like ``on_layer``.
        on_layer: likewise.

    Returns:
        The states after the last of these layers for the utterances that have not left, (F', D).
    """
    for layer in layers:
        output = runner.layer(layer, states, batch.layout, batch.previous_units)
        batch.record_states(output.states)
        is_exit = layer in batch.exit_numbers
        if is_exit:
            batch.record_scores(layer, output)
            if observe is not None:
                assert output.head_outputs is not None
                observe(output.head_outputs)
        if on_layer is not None:
            on_layer(layer)
        states = output.states
        if is_exit:
            states = batch.leave(layer, _decide(policy, layer, batch), states)
            if not len(batch.active):
                break
    return states


def _decide(policy: Policy, layer: int, batch: BatchState) -> Tensor:
    """Decide which utterances leave: (active,) bool on the CPU."""
    number = batch.exit_numbers[layer]
    if number == len(batch.exit_numbers):
        return torch.ones(len(batch.active), dtype=torch.bool)
    leave = policy.decide(batch.trajectories(policy.reads, number), number)
    return leave.cpu().expand(len(batch.active))
