"""The losses of exit heads that learn on a frozen network, as the fairseq plugin and `daisy.training` minimise them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from daisy.models.exit_objective import LayerLosses
from daisy.models.heads import ExitHeads, mean_and_std
from daisy.models.hubert import Backbone
from daisy.models.kinds import AnyBackbone
from daisy.models.lengths import make_valid_mask
from daisy.models.losses import UnitLoss, unit_loss
from daisy.models.packing import PackedLayout

UNWEIGHTED: Mapping[int, float] = MappingProxyType({})


def compute_head_losses(
    backbone: AnyBackbone,
    heads: ExitHeads,
    source: Tensor,
    num_samples: Tensor,
    *,
    teacher: Callable[[Tensor], Tensor] | None = None,
    labels: Tensor | None = None,
    label_rate: float = 50.0,
    noisy_source: Tensor | None = None,
    draw_mask: Callable[[Tensor], Tensor] | None = None,
) -> LayerLosses:
    """Run a batch through the frozen backbone, and compute the losses of all heads.

    Each regressor learns the mean loss of its head on each utterance: on masked frames where frames are masked, else on
    all. It reads the utterance unmasked, as at inference; in training mode it also updates its running statistics.

    Args:
        backbone: the frozen network; it gets no gradient.
        heads: heads to train.
        source: (B, N) waveforms, which are also the teacher's input.
        num_samples: (B,) int64 on the CPU.
        teacher: maps the last layer's states (B, T, D) to units (B, T); used where there are no labels.
        labels: (B, M) int64 units, -1 where there is none.
        label_rate: labels per second.
        noisy_source: (B, N) waveforms that the heads learn on instead of ``source``.
        draw_mask: maps valid frames (B, T) bool to those to mask for the network, which must be HuBERT or its kin;
            None: no masking.

    Returns:
        The losses of each layer on masked and other frames, and the regressors' predictions.
    """
    with torch.no_grad():
        features, num_frames = backbone.front_end(source, num_samples)
        layers = None
        if labels is None:
            assert teacher is not None
            layers = backbone.run_layers(backbone.embed(features, num_frames), num_frames)[1:]
            targets = teacher(layers[-1])
        else:
            hop_sec = backbone.config.frame_hop / backbone.config.sample_rate
            targets = align_labels(labels, label_rate * hop_sec, features.shape[1])
        if noisy_source is not None:
            features, _ = backbone.front_end(noisy_source, num_samples)
            layers = None
        if layers is None:
            layers = backbone.run_layers(backbone.embed(features, num_frames), num_frames)[1:]
        valid = make_valid_mask(num_frames, features.shape[1]).to(features.device)
        masked = draw_mask(valid) if draw_mask is not None else None
        valid = valid & (targets >= 0)
        learnt_on = layers
        if masked is not None:
            assert isinstance(backbone, Backbone)
            projected = backbone.project(features)
            projected[masked] = backbone.mask_embedding.to(projected.dtype)
            learnt_on = backbone.run_layers(backbone.position(projected, num_frames), num_frames)[1:]
    losses = _compute_unit_losses(heads, learnt_on, targets, valid, masked)
    judged = [unmasked if masked is None else on_masked for on_masked, unmasked in losses]
    return LayerLosses(
        masked=[loss for loss, _ in losses],
        unmasked=[loss for _, loss in losses],
        judged=judged,
        predicted=_predict_losses(heads, layers, num_frames, judged),
    )


def align_labels(labels: Tensor, per_frame: float, length: int) -> Tensor:
    """Align labels (B, M), ``per_frame`` of them per frame, to targets (B, length), -1 past their end."""
    if not labels.shape[1]:
        return labels.new_full((len(labels), length), -1)
    places = (torch.arange(length, device=labels.device) * per_frame).long()
    known = places < labels.shape[1]
    return torch.where(known, labels[:, places.clamp(max=labels.shape[1] - 1)], -1)


def _compute_unit_losses(
    heads: ExitHeads, layers: Sequence[Tensor], targets: Tensor, valid: Tensor, masked: Tensor | None
) -> list[tuple[UnitLoss, UnitLoss]]:
    """Compute the losses of each layer over (masked, unmasked) frames; padding is in neither."""
    batch = len(valid)
    group = valid.nonzero()[:, 0]  # masked frames belong to group b, the others to b + batch
    group = group + batch if masked is None else torch.where(masked[valid], group, group + batch)
    wanted = targets[valid]
    losses = []
    for layer, states in enumerate(layers, 1):
        loss = unit_loss(heads.unit_logits(layer, states[valid]), wanted, group, 2 * batch)
        losses.append((UnitLoss(*(x[:batch] for x in loss)), UnitLoss(*(x[batch:] for x in loss))))
    return losses


def _predict_losses(
    heads: ExitHeads, layers: Sequence[Tensor], num_frames: Tensor, judged: Sequence[UnitLoss]
) -> list[Tensor]:
    """Predict the unmasked utterances' losses with each layer's regressor, (B,) nats; empty without regressors."""
    if heads.regressors is None:
        return []
    predicted, layout = [], PackedLayout(num_frames, layers[0].device)
    valid = make_valid_mask(num_frames, layers[0].shape[1]).to(layers[0].device)
    for layer, (states, loss) in enumerate(zip(layers, judged, strict=True), 1):
        pooled = mean_and_std(states[valid], layout)
        if heads.training:
            counted = loss.num_counted > 0
            heads.regressors[layer - 1].observe(pooled[counted], loss.mean()[counted])
        predicted.append(heads.predicted_loss(layer, pooled))
    return predicted


def sum_layer_losses(
    output: LayerLosses, masked_weight: float, unmasked_weight: float, layer_weights: Mapping[int, float] = UNWEIGHTED
) -> tuple[Tensor, dict[str, float]]:
    """Sum the unit losses and the regressors' Huber losses over frames, averaged over layers; nats are logged by layer.

    Args:
        output: losses of layers 1 to L.
        masked_weight: weight of the unit losses on masked frames.
        unmasked_weight: weight of the unit losses on the other frames.
        layer_weights: weight of each layer's unit losses, 1 for layers that it lacks.

    Returns:
        The sum, to be divided by the number of frames that count, and sums for the log.
    """
    sums: dict[str, Tensor] = {}
    total = output.unmasked[0].loss.new_zeros(())
    for layer, (masked, unmasked, judged) in enumerate(
        zip(output.masked, output.unmasked, output.judged, strict=True), 1
    ):
        weight = layer_weights.get(layer, 1.0)
        total = total + weight * masked_weight * masked.loss.sum() + weight * unmasked_weight * unmasked.loss.sum()
        sums[f"nats_{layer}"] = judged.loss.detach().sum()
        sums[f"correct_{layer}"] = judged.num_correct.sum()
        sums["judged"] = judged.num_counted.sum()
        if output.predicted:
            predicted, wanted = output.predicted[layer - 1], judged.mean()
            total = total + (F.huber_loss(predicted, wanted, reduction="none") * judged.num_counted).sum()
            sums[f"error_{layer}"] = ((predicted.detach() - wanted).abs() * (judged.num_counted > 0)).sum()
    values = torch.stack([value.double() for value in sums.values()]).tolist()  # one device synchronisation, not many
    return total / len(output.unmasked), dict(zip(sums, values, strict=True))


def count_frames_that_count(output: LayerLosses, masked_weight: float, unmasked_weight: float) -> float:
    """Count the frames whose losses have a weight."""
    masked, unmasked = (float(losses[0].num_counted.sum()) for losses in (output.masked, output.unmasked))
    return masked * (masked_weight > 0) + unmasked * (unmasked_weight > 0)
