"""Encode waveforms as units, each utterance at its own exit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daisy.checkpoints import Model
from daisy.encoder import EarlyExitEncoder, Waveforms
from daisy.errors import CheckpointError, UsageError
from daisy.policies import DEFAULT_POLICY, Fixed, Policy
from daisy.policies.scores import HeadOutputs
from daisy.runtime.dtypes import Precision
from daisy.runtime.exit_output import ExitOutput
from daisy.units.classifiers import HeadUnits, KmeansUnits, UnitClassifier
from daisy.units.sequences import deduplicate


@dataclass(frozen=True, kw_only=True)
class UnitSequence:
    """The units of one utterance."""

    units: list[int]
    """Unit of each frame, 0 to K - 1."""
    exit_layer: int
    """Layer at which the units were read."""

    def deduplicate(self) -> tuple[list[int], list[int]]:
        """Return the units without repetitions, and how many frames each lasts."""
        return deduplicate(self.units)


class UnitEncoder:
    """Runs waveforms as far as the policy says, and finds their units there.

    Without ``kmeans`` units are those that the exit heads predict: an estimate of the full model's, at any layer. With
    one they are its nearest centres on a layer: everything up to that layer runs, and nothing above it.

    Args:
        model: model with exit heads on units, unless there is a k-means.
        policy: policy that decides when utterances leave, as in `Model.encoder`. Not with ``kmeans``, which is for one
            layer.
        kmeans: (K, D) centres from `daisy.units.read_kmeans`.
        layer: layer that the k-means is for, 1 to L.
        scores: scores to compute besides those that the policy reads.
        dtype: type to compute in; None: the model's.
        settings: settings of a policy given by name: ``threshold=1.2``.

    Raises:
        CheckpointError: where there are neither heads nor a k-means.
        UsageError: on a k-means without a layer, of another width than the layer, or together with a policy.
        PolicyError: as in `Model.encoder`.

    Example:
        >>> import daisy, torch
        >>> from daisy.units import UnitEncoder
        >>> units = UnitEncoder(daisy.load("daisy-mini"), "fixed", layer=6)
        >>> (sequence,) = units(torch.zeros(16000))
        >>> len(sequence.units), sequence.exit_layer, units.num_units
        (49, 6, 200)
        >>> kmeans = UnitEncoder(daisy.load("daisy-mini"), kmeans=torch.randn(8, 256), layer=9)
        >>> kmeans(torch.zeros(16000))[0].exit_layer
        9
    """

    classifier: UnitClassifier

    def __init__(
        self,
        model: Model,
        policy: str | Path | Policy | None = None,
        *,
        kmeans: Tensor | None = None,
        layer: int | None = None,
        scores: Iterable[str] = (),
        dtype: Precision | torch.dtype | None = None,
        **settings: Any,
    ):
        if kmeans is not None:
            if policy is not None or settings:
                raise UsageError("a k-means is of one layer, so no policy goes with it")
            self.classifier = KmeansUnits(kmeans)
            self.encoder = _make_layer_encoder(model, self.classifier, layer, dtype)
            return
        if model.heads is None:
            raise CheckpointError(
                "this checkpoint has no exit heads, which would tell units: train heads (daisy train-heads, or the "
                "fairseq plugin), or give a k-means"
            )
        if layer is not None:
            settings["layer"] = layer
        self.classifier = HeadUnits(model.heads)
        encoder = model.encoder(
            DEFAULT_POLICY if policy is None else policy,
            heads="units",
            keep="last",
            scores=scores,
            dtype=dtype,
            **settings,
        )
        self.encoder = _read_feed_forward(encoder) if model.heads.config.reads == "feed_forward" else encoder

    @property
    def num_units(self) -> int:
        """Number of units, K: they are 0 to K - 1."""
        return self.classifier.num_units

    @torch.no_grad()
    def __call__(self, waveforms: Waveforms, num_samples: Tensor | Sequence[int] | None = None) -> list[UnitSequence]:
        """Find the units of a batch.

        Args:
            waveforms: waveforms as in `EarlyExitEncoder.forward`, at the backbone's sample rate.
            num_samples: likewise.

        Raises:
            AudioError: as in `EarlyExitEncoder.forward`.
        """
        result = self.encoder(waveforms, num_samples)
        return [
            UnitSequence(units=units.tolist(), exit_layer=layer)
            for units, layer in zip(classify(self.classifier, result), result.exit_layer.tolist(), strict=True)
        ]


@torch.no_grad()
def classify(classifier: UnitClassifier, result: ExitOutput) -> list[Tensor]:
    """Find units (T_b,) int64, on the CPU, from the output of an encoder, with one product for each exit layer.

    Args:
        classifier: classifier of the states.
        result: output of a `UnitEncoder`'s encoder.
    """
    units: list[Tensor] = [torch.empty(0)] * len(result)
    exits = result.exit_layer.tolist()
    for layer in sorted(set(exits)):
        rows = [row for row, exit_layer in enumerate(exits) if exit_layer == layer]
        frames = [result.states[row][-1] for row in rows]
        classified = classifier.classify(layer, torch.cat(frames) if len(frames) > 1 else frames[0]).cpu()
        for row, of_row in zip(rows, classified.split([len(part) for part in frames]), strict=True):
            units[row] = of_row
    return units


class FeedForwardEncoder(EarlyExitEncoder):
    """Keeps the exit layer's feed-forward output before residual and norm, for heads that read it."""

    @torch.no_grad()
    def forward(
        self,
        waveforms: Waveforms,
        num_samples: Tensor | Sequence[int] | None = None,
        *,
        mask: Tensor | None = None,
        observe: Callable[[HeadOutputs], None] | None = None,
        on_layer: Callable[[int], None] | None = None,
    ) -> ExitOutput:
        """See `EarlyExitEncoder.forward`; ``states`` are (1, T_b, D) of the feed-forward block."""
        read: dict[int, Tensor] = {}

        def note(outputs: HeadOutputs) -> None:
            read[outputs.layer] = outputs.all_features
            if observe is not None:
                observe(outputs)

        result = super().forward(waveforms, num_samples, mask=mask, observe=note, on_layer=on_layer)
        states: list[Tensor] = list(result.states)
        for layer, features in read.items():
            active = (result.exit_layer >= layer).nonzero()[:, 0].tolist()
            for row, frames in zip(active, features.split(result.num_frames[active].tolist()), strict=True):
                states[row] = frames[None]  # the deepest layer comes last
        return dataclasses.replace(result, states=states)


def _read_feed_forward(encoder: EarlyExitEncoder) -> FeedForwardEncoder:
    return FeedForwardEncoder(
        encoder.backbone,
        encoder.heads,
        encoder.policy,
        keep="last",
        scores=encoder.score_names,
        score_stride=encoder.score_stride,
        exits=encoder.exits,
        dtype=encoder.dtype,
    )


def _make_layer_encoder(
    model: Model, kmeans: KmeansUnits, layer: int | None, dtype: Precision | torch.dtype | None
) -> EarlyExitEncoder:
    """Make an encoder that runs up to the layer of a k-means."""
    config = model.backbone.config
    if layer is None:
        raise UsageError("a k-means is of one layer, and none is given", remedy="layer")
    if not 1 <= layer <= config.num_layers:
        raise UsageError(f"the k-means' layer must be 1 to {config.num_layers}, found {layer}")
    if kmeans.width != config.width:
        raise UsageError(f"the k-means is of states {kmeans.width} wide, and this model's are {config.width} wide")
    return EarlyExitEncoder(
        model.backbone, None, Fixed(layer=layer), keep="last", dtype=model.dtype if dtype is None else dtype
    )
