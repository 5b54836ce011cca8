"""Truncate models after one of their exits, to shallow models that stand alone."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import nn

from daisy import _files
from daisy.checkpoints.model import Model
from daisy.errors import CheckpointError, PolicyError
from daisy.models import (
    AttentionDecoders,
    Backbone,
    Conformer,
    ConformerConfig,
    CTCHeads,
    ExitHeads,
    Whisper,
    WhisperConfig,
)
from daisy.models.kinds import AnyBackbone
from daisy.policies import POLICIES, make_policy
from daisy.policies.rules import LookAhead


def truncate(model: Model, layer: int) -> Model:
    """Cut a model after one of its exits.

    States and texts at the last exit are those of the whole model's policy fixed at that layer. Heads of earlier layers
    stay, and so do default policies that still make sense; a forecast of later layers' gains is cut likewise. The
    prediction head of the whole model's last layer is removed.

    Args:
        model: model with exit heads on units or CTC exits, of HuBERT, a Conformer or Whisper.
        layer: layer that becomes the last; in a recogniser it must have an exit.

    Returns:
        A separate model, on the CPU; its provenance says from which model it was cut.

    Raises:
        CheckpointError: where the layer has no exit, or does not exist.

    Example:
        >>> import daisy, torch
        >>> model = daisy.load("daisy-mini")
        >>> shallow = daisy.checkpoints.truncate(model, 6)
        >>> shallow.backbone.config.num_layers, shallow.heads.config.num_layers
        (6, 6)
    """
    depth = model.backbone.config.num_layers
    if not 1 <= layer <= depth:
        raise CheckpointError(f"no layer {layer}: this checkpoint has layers 1 to {depth}")
    ctc = None if model.ctc is None else _copy(model.ctc.cut(layer))
    ctc_policies = {}
    if model.ctc is not None and ctc is not None:
        ctc_policies = _cut_policies(model.ctc_policies, len(model.ctc.config.layers), len(ctc.config.layers))
    decoders = None
    if model.decoders is not None:
        decoders = AttentionDecoders(model.decoders.config.cut(layer))
        _take_weights(decoders, model.decoders)
    heads = None
    if model.heads is not None:
        heads = ExitHeads(dataclasses.replace(model.heads.config, num_layers=layer))
        _take_weights(heads, model.heads)
    return Model(
        backbone=_cut_backbone(model.backbone, layer),
        heads=heads,
        final_head=copy.deepcopy(model.final_head).cpu() if layer == depth and model.final_head is not None else None,
        policies=_cut_policies(model.policies, depth, layer),
        ctc=ctc,
        tokens=model.tokens,
        ctc_policies=ctc_policies,
        decoders=decoders,
        provenance={**model.provenance, "truncated": _describe(model, layer)},
    )


def _describe(model: Model, layer: int) -> dict[str, Any]:
    said: dict[str, Any] = {"layer": layer, "of": model.backbone.config.num_layers}
    if model.path is not None:
        said |= {"checkpoint": model.path.stem, "digest": _files.digest(model.path)}
    return said


def _cut_backbone(backbone: AnyBackbone, layer: int) -> AnyBackbone:
    config = backbone.config
    cut: AnyBackbone
    if isinstance(config, ConformerConfig):
        cut = Conformer(_cut_conformer(config, layer))
    else:
        loses_norm = config.pre_norm and layer < config.num_layers
        final_norm = config.final_norm and not loses_norm
        if isinstance(config, WhisperConfig):
            cut = Whisper(dataclasses.replace(config, num_layers=layer, final_norm=final_norm))
        else:
            cut = Backbone(dataclasses.replace(config, num_layers=layer, final_norm=final_norm))
    _take_weights(cut, backbone)
    return cut


def _cut_conformer(config: ConformerConfig, layer: int) -> ConformerConfig:
    """Cut blocks after a layer; within a block only if none is split, and blocks are then of one layer."""
    whole, rest = divmod(layer, config.block_layers)
    if rest and config.split_blocks:
        raise CheckpointError(f"layer {layer} is within a block that runs in parallel: cut at the end of one")
    return dataclasses.replace(
        config,
        num_layers=layer,
        block_layers=1 if rest else config.block_layers,
        split_blocks=tuple(block for block in config.split_blocks if block <= whole),
    )


def _copy(heads: CTCHeads) -> CTCHeads:
    """Copy heads, with their weights."""
    copied = CTCHeads(heads.config)
    _take_weights(copied, heads)
    return copied


@torch.no_grad()
def _take_weights(cut: nn.Module, whole: nn.Module) -> None:
    """Copy the weights of the remaining layers, which have the same names."""
    state = whole.state_dict()
    cut.load_state_dict({name: state[name].cpu() for name in cut.state_dict()})


def _cut_policies(policies: dict[str, dict[str, Any]], before: int, after: int) -> dict[str, dict[str, Any]]:
    """Cut default settings to fewer exits; policies without settings are then left out."""
    cut = {}
    for name, settings in policies.items():
        kept = _cut_settings(name, settings, before, after)
        try:
            make_policy(name, kept).check(after)
        except PolicyError:
            continue
        cut[name] = kept
    return cut


def _cut_settings(name: str, settings: dict[str, Any], before: int, after: int) -> dict[str, Any]:
    """Cut settings to the first ``after`` of ``before`` exits."""
    policy = POLICIES.get(name)
    if policy is None or before == after:
        return settings
    kept = dict(settings)
    for key in policy.layered:
        if isinstance(kept.get(key), (list, tuple)):
            kept[key] = kept[key][:after]
    if issubclass(policy, LookAhead) and after > 1:
        for key in ("weights", "intercepts"):  # for each exit, a row for each later one
            kept[key] = [rows[: after - number] for number, rows in enumerate(kept.get(key, ())[: after - 1], 1)]
    return kept
