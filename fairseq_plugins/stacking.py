"""Make a deep HuBERT from a shallow one: spread its layers over the depth, with pass-through layers between them."""

import re

import torch
from torch import Tensor

from daisy.errors import UsageError

LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.*)")
OUTPUTS = ("self_attn.out_proj.", "fc2.")


def spread(weights: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Spread fairseq's weights of a HuBERT with some layers over one with ``num_layers``.

    Source layer i of n becomes layer round(i * num_layers / n), counted from 1. Each layer inserted before it is the
    next source layer with zero output projections, so that it passes on its input; in a post-norm model, its norms give
    the output of the norm before it the same mean and deviation, on average. The deeper network
    starts where the shallow one ended: exactly with pre-norm layers, nearly with post-norm ones.

    Raises:
        UsageError: where the source has more layers.
    """
    depth = 1 + max(int(match[1]) for key in weights if (match := LAYER.fullmatch(key)))
    if depth == num_layers:
        return weights
    if depth > num_layers:
        raise UsageError(f"{depth} layers cannot be spread over {num_layers}")
    result = {key: value for key, value in weights.items() if not LAYER.fullmatch(key)}
    places = [round((source + 1) * num_layers / depth) - 1 for source in range(depth)]
    for layer in range(num_layers):
        source = next(i for i, place in enumerate(places) if place >= layer)
        for key, value in weights.items():
            match = LAYER.fullmatch(key)
            if match and int(match[1]) == source:
                name = match[2]
                if layer != places[source]:
                    value = _passing(weights, source, name, value)
                result[f"encoder.layers.{layer}.{name}"] = value.clone()
    return result


def _passing(weights: dict[str, Tensor], source: int, name: str, value: Tensor) -> Tensor:
    """Return a parameter of a pass-through layer inserted before source layer ``source``."""
    if name.startswith(OUTPUTS):
        return torch.zeros_like(value)
    if "layer_norm" in name:
        before = f"encoder.layers.{source - 1}.final_layer_norm" if source else "encoder.layer_norm"
        gain, shift = weights[f"{before}.weight"], weights[f"{before}.bias"]
        if name.endswith(".bias"):
            return torch.full_like(value, float(shift.mean()))
        return torch.full_like(value, float((gain.square().mean() + shift.var(correction=0)).sqrt()))
    return value
