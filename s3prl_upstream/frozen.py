"""The frozen upstream: waveforms to utterances with their exits and states, computed or taken from a cache."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from daisy.encoder import EarlyExitEncoder
from daisy.policies import Fixed, Never, Policy, Window
from daisy.policies.scores import available_scores


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Which of an utterance's executed states, layers 0 to its exit, the featurizer takes."""

    layer: int | str = "all"
    """"all"; "exit": the exit layer's only; or a layer, for which the exit layer's stands in where that is earlier."""
    mean: bool = False
    """Over time, for downstream models that do nothing before their mean pooling but what commutes with it."""
    normalize: bool = False
    """Layer norm of each frame before the mean; without ``mean`` it is the featurizer's."""

    def take(self, states: Tensor) -> Tensor:
        """Take (n, T or 1, D) of (exit_layer + 1, T, D)."""
        if self.layer != "all":
            layer = len(states) - 1 if self.layer == "exit" else min(int(self.layer), len(states) - 1)
            states = states[layer : layer + 1]
        if self.mean:
            states = (F.layer_norm(states, states.shape[-1:]) if self.normalize else states).mean(1, keepdim=True)
        return states


@dataclass(kw_only=True)
class Utterance:
    """One utterance of a batch."""

    audio: str
    """`audio_digest`."""
    num_samples: int
    num_frames: int
    exit_layer: int
    scores: dict[str, Tensor]
    """Each (L,) float32 on the CPU, NaN where not executed."""
    states: Tensor
    """What `Needs.take` takes, (n, T or 1, D) float32 on the backbone's device."""
    cached: bool = False
    """Taken from the cache."""


@dataclass(kw_only=True)
class Batch:
    """The utterances of one call, and what they cost."""

    utterances: list[Utterance] = field(default_factory=list)
    computed_sec: float = 0.0
    """Seconds in the encoder."""
    cache_sec: float = 0.0
    """Seconds of digests, reading and writing."""


def audio_digest(waveform: Tensor) -> str:
    """Compute the SHA-256 of the samples as float32, 64 hexadecimal digits. One sample changed is other audio."""
    return hashlib.sha256(waveform.detach().cpu().float().contiguous().numpy().data).hexdigest()


def encode(
    encoder: EarlyExitEncoder,
    waveforms: Sequence[Tensor],
    digests: Sequence[str],
    needs: Needs,
    alone: bool | None = None,
) -> Batch:
    """Run an encoder that keeps at least what is needed.

    On a CPU one utterance after the other: the result is the same to the last bit whatever else is in the batch. On
    other devices, and for policies that let batches leave, together.

    Args:
        encoder: backbone, heads and policy.
        waveforms: 1-D each, at the backbone's rate.
        digests: `audio_digest` of each.
        needs: what to keep of the states.
        alone: one after the other; None: as said above.

    Raises:
        AudioError: as the encoder does.
    """
    device = encoder.backbone.device
    if alone is None:
        alone = device.type == "cpu" and not isinstance(encoder.policy, Window)
    groups = [[waveform] for waveform in waveforms] if alone else [list(waveforms)]
    batch = Batch()
    start = time.perf_counter()
    # In training s3prl may autocast, in evaluation it does not: exits must not depend on that.
    with torch.autocast(device.type, enabled=False):
        for group in groups:
            out = encoder(group)
            for row, waveform in enumerate(group):
                batch.utterances.append(
                    Utterance(
                        audio=digests[len(batch.utterances)],
                        num_samples=len(waveform),
                        num_frames=int(out.num_frames[row]),
                        exit_layer=int(out.exit_layer[row]),
                        scores={name: values[row] for name, values in out.scores.items()},
                        states=needs.take(out.states[row]),
                    )
                )
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    batch.computed_sec = time.perf_counter() - start
    return batch


def make_recorder(encoder: EarlyExitEncoder, full: bool) -> EarlyExitEncoder:
    """Make an encoder for a cache, which runs as far as exits can come and notes the scores, in any batch alike.

    From these `decide_exits` makes each batch's exits.

    Args:
        encoder: whose policy decides.
        full: run all layers and note all scores, for any policy; else only what a `Window` needs.
    """
    last: Policy = Never()
    names = set(encoder.score_names)
    if full:
        names = available_scores(encoder.heads)
    elif isinstance(encoder.policy, Window):
        last = Fixed(layer=min(encoder.policy.last, encoder.backbone.config.num_layers))
    return EarlyExitEncoder(encoder.backbone, encoder.heads, last, scores=names, score_stride=encoder.score_stride)


def recorded_needs(needs: Needs) -> Needs:
    """Return what `make_recorder`'s utterances keep: all layers, for the exit is not known yet."""
    return replace(needs, layer="all")


def decide_exits(policy: Policy, recorded: Sequence[Utterance], needs: Needs) -> list[Utterance]:
    """Decide the exits of a batch whose utterances a `make_recorder` made, with `recorded_needs` of them."""
    needs = Needs(layer=needs.layer)  # the mean was taken before
    scores = {name: torch.stack([run.scores[name] for run in recorded]) for name in recorded[0].scores}
    exits = policy.exit_layers(scores).tolist()
    nan = torch.nan
    return [
        Utterance(
            audio=run.audio,
            num_samples=run.num_samples,
            num_frames=run.num_frames,
            exit_layer=exit_layer,
            scores={
                name: values.where(torch.arange(len(values)) < exit_layer, nan)
                for name, values in run.scores.items()
                if name in policy.reads
            },
            states=needs.take(run.states[: exit_layer + 1]),
            cached=run.cached,
        )
        for run, exit_layer in zip(recorded, exits, strict=True)
    ]
