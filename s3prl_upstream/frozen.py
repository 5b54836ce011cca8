"""Run the frozen upstream: from waveforms to utterances with exits and states, which may be cached."""

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
    """The part of an utterance's executed states, layers 0 to its exit, that the featurizer takes."""

    layer: int | str = "all"
    """"all"; "exit": only the exit layer; or a layer, replaced by the exit layer where that is earlier."""
    mean: bool = False
    """Whether to take the mean over time, for downstream models whose steps before mean pooling commute with it."""
    normalize: bool = False
    """Whether to apply layer norm to each frame before the mean; without ``mean`` the featurizer applies it."""

    def take(self, states: Tensor) -> Tensor:
        """Select (n, T or 1, D) from states (exit_layer + 1, T, D)."""
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
    """Digest of the audio, from `audio_digest`."""
    num_samples: int
    num_frames: int
    exit_layer: int
    scores: dict[str, Tensor]
    """Scores by name, (L,) float32 each on the CPU, NaN where not executed."""
    states: Tensor
    """Selected by `Needs.take`, (n, T or 1, D) float32 on the backbone's device."""
    cached: bool = False
    """Whether it was read from the cache."""


@dataclass(kw_only=True)
class Batch:
    """The utterances of one call, and the time that they took."""

    utterances: list[Utterance] = field(default_factory=list)
    computed_sec: float = 0.0
    """Seconds in the encoder."""
    cache_sec: float = 0.0
    """Seconds for digests, reading and writing."""


def audio_digest(waveform: Tensor) -> str:
    """Compute the SHA-256 of the samples as float32, 64 hexadecimal digits. Any changed sample changes it."""
    return hashlib.sha256(waveform.detach().cpu().float().contiguous().numpy().data).hexdigest()


def encode(
    encoder: EarlyExitEncoder,
    waveforms: Sequence[Tensor],
    digests: Sequence[str],
    needs: Needs,
    alone: bool | None = None,
) -> Batch:
    """Run an encoder that keeps at least what is needed.

    On a CPU utterances run one after the other: results are the same to the last bit whatever else is in the batch. On
    other devices, and for policies that decide for whole batches, they run together.

    Args:
        encoder: backbone, heads and policy.
        waveforms: 1-D each, at the backbone's rate.
        digests: `audio_digest` of each.
        needs: what to keep of the states.
        alone: run one after the other; None: as described above.

    Raises:
        AudioError: as in the encoder.
    """
    device = encoder.backbone.device
    if alone is None:
        alone = device.type == "cpu" and not isinstance(encoder.policy, Window)
    groups = [[waveform] for waveform in waveforms] if alone else [list(waveforms)]
    batch = Batch()
    start = time.perf_counter()
    # In training s3prl may autocast, in evaluation it does not: exits must not depend on this.
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
    """Make an encoder for a cache, which runs up to the last possible exit and records scores, whatever the batch.

    From these, `decide_exits` decides each batch's exits.

    Args:
        encoder: encoder with the policy.
        full: run all layers and record all scores, for any policy; else only those that a `Window` needs.
    """
    last: Policy = Never()
    names = set(encoder.score_names)
    if full:
        names = available_scores(encoder.heads)
    elif isinstance(encoder.policy, Window):
        last = Fixed(layer=min(encoder.policy.last, encoder.backbone.config.num_layers))
    return EarlyExitEncoder(encoder.backbone, encoder.heads, last, scores=names, score_stride=encoder.score_stride)


def recorded_needs(needs: Needs) -> Needs:
    """Return the needs for utterances of `make_recorder`: all layers, as the exit is not known yet."""
    return replace(needs, layer="all")


def decide_exits(policy: Policy, recorded: Sequence[Utterance], needs: Needs) -> list[Utterance]:
    """Decide the exits of a batch of utterances from `make_recorder`, kept with `recorded_needs`."""
    needs = Needs(layer=needs.layer)  # the mean was already taken
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
