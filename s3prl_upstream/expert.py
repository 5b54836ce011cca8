"""The upstream as s3prl calls it: a list of waveforms in, a dictionary of states out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from s3prl.upstream.interfaces import SAMPLE_RATE, UpstreamBase
from torch import Tensor, nn

import daisy
from daisy import checkpoint as checkpoints
from daisy.encoder import EarlyExitEncoder
from daisy.errors import CheckpointError
from daisy.policies import Never, Window
from s3prl_upstream import frozen
from s3prl_upstream.cache import StateCache
from s3prl_upstream.frozen import Batch, Needs, Utterance
from s3prl_upstream.policy import resolve


class UpstreamExpert(UpstreamBase):
    """A HuBERT that each utterance leaves at its own layer.

    Frozen (evaluation mode, or no gradients wanted), its policy decides. While it trains (training mode, gradients
    wanted) all layers run and gradients reach them, but not the convolutions, as with s3prl's HuBERT.

    Args:
        ckpt: a daisy checkpoint, or a bundled model's name.
        model_config: which policy, as of `s3prl_upstream.policy.resolve`.

    Raises:
        CheckpointError: where there is no such checkpoint, or of another rate than s3prl's 16 kHz.
        PolicyError: on a policy that does not fit it.
    """

    def __init__(self, ckpt: str | Path, model_config: str | Path | Mapping | None = None):
        super().__init__()
        model = daisy.load(ckpt)
        rate = model.backbone.config.sample_rate
        if rate != SAMPLE_RATE:
            raise CheckpointError(f"{ckpt}: takes audio at {rate} Hz, and s3prl gives it at {SAMPLE_RATE} Hz")
        policy, stride = resolve(model, ckpt, model_config)
        self.encoder = EarlyExitEncoder(model.backbone, model.heads, policy, score_stride=stride)
        self.checkpoint = str(ckpt)
        self.digest = checkpoints.digest(ckpt)
        self.needs = Needs()
        self.executed_only = False
        """Give the states as they are, utterance by utterance, not padded and repeated for s3prl's featurizer."""
        self.cache: StateCache | None = None
        self.last = Batch()
        """What the last call did, for the exit log."""

    @property
    def num_layers(self) -> int:
        """L, of the transformer."""
        return self.encoder.backbone.config.num_layers

    @property
    def width(self) -> int:
        """D."""
        return self.encoder.backbone.config.width

    def get_downsample_rates(self, key: str) -> int:
        """Samples between two frames, of any key."""
        return self.encoder.backbone.config.frame_hop

    def exits_off(self) -> None:
        """Run all layers from now on: heads and thresholds say nothing of weights that have changed."""
        self.encoder = EarlyExitEncoder(self.encoder.backbone, self.encoder.heads, Never())

    def cache_in(self, folder: Path, dtype: str) -> None:
        """Keep states on disk from now on; `needs` must be settled.

        Args:
            folder: of the cache.
            dtype: of the states there.

        Raises:
            OutputError: where the folder cannot be written.
        """
        policy = self.encoder.policy
        self.cache = StateCache(
            folder,
            checkpoint=self.digest,
            policy=policy.to_config(),
            score_stride=self.encoder.score_stride,
            needs=Needs() if isinstance(policy, Window) else self.needs,
            dtype=dtype,
        )

    def forward(self, wavs: Sequence[Tensor]) -> dict:
        """Run a batch.

        Args:
            wavs: B waveforms (N_b,) at 16 kHz, of any lengths from one frame on.

        Returns:
            ``exit_layer`` (B,) and ``num_frames`` (B,), int64 on the CPU, and for s3prl's featurizer ``hidden_states``,
            a tuple of L + 1 tensors (B, T, D), layer 0 first, with the exit layer's where a layer was not run and the
            last frame where an utterance has ended; ``hidden_state_0`` to ``hidden_state_L``, and
            ``last_hidden_state``. With `executed_only` in their place ``states``, a list of B tensors (n, T_b, D):
            what `needs` takes of the executed layers.

        Raises:
            AudioError: on an utterance shorter than a frame, or (on the CPU) with samples that are no numbers.
            OutputError: where the cache cannot be written.
        """
        if self.training and torch.is_grad_enabled():
            states = self._with_gradients(wavs)
        else:
            self.last = self._frozen(wavs)
            states = [utterance.states for utterance in self.last.utterances]
        batch = self.last.utterances
        found: dict = {
            "exit_layer": torch.tensor([utterance.exit_layer for utterance in batch]),
            "num_frames": torch.tensor([utterance.num_frames for utterance in batch]),
        }
        self._let_go()
        if self.executed_only:
            return {**found, "states": states}
        layers = padded(states, self.num_layers)
        found |= {f"hidden_state_{layer}": state for layer, state in enumerate(layers)}
        return {**found, "hidden_states": layers, "last_hidden_state": layers[-1]}

    def _let_go(self) -> None:
        """The log needs no states, and the next batch needs their memory."""
        for utterance in self.last.utterances:
            utterance.states = torch.empty(0)

    def _frozen(self, wavs: Sequence[Tensor]) -> Batch:
        if self.cache is None:
            digests = [frozen.audio_digest(wav) for wav in wavs]
            return frozen.encode(self.encoder, wavs, digests, self.needs)
        policy, cache, digests = self.encoder.policy, self.cache, [frozen.audio_digest(wav) for wav in wavs]
        encoder = frozen.recorder(self.encoder)
        needs = Needs() if isinstance(policy, Window) else self.needs

        def compute(indices: list[int]) -> Batch:
            return frozen.encode(encoder, [wavs[i] for i in indices], [digests[i] for i in indices], needs)

        batch = cache.batch(digests, self.encoder.backbone.device, compute)
        if isinstance(policy, Window):
            batch.utterances = frozen.decided(policy, batch.utterances, self.needs)
        return batch

    def _with_gradients(self, wavs: Sequence[Tensor]) -> list[Tensor]:
        """All layers of each utterance, (L + 1, T_b, D)."""
        backbone = self.encoder.backbone
        num_samples = torch.tensor([len(wav) for wav in wavs])
        with torch.no_grad():
            features, num_frames = backbone.front_end(nn.utils.rnn.pad_sequence(list(wavs), True), num_samples)
        layers = [backbone.embed(features, num_frames)]
        for layer in range(1, self.num_layers + 1):
            layers.append(backbone.layer(layer, layers[-1], num_frames))
        everything = torch.stack(layers, 1)
        states = [self.needs.take(each[:, :n]) for each, n in zip(everything, num_frames.tolist(), strict=True)]
        self.last = Batch(
            utterances=[
                Utterance(
                    audio=frozen.audio_digest(wav),
                    num_samples=len(wav),
                    num_frames=n,
                    exit_layer=self.num_layers,
                    scores={},
                    states=torch.empty(0),
                )
                for wav, n in zip(wavs, num_frames.tolist(), strict=True)
            ]
        )
        return states


def padded(states: Sequence[Tensor], num_layers: int) -> tuple[Tensor, ...]:
    """(exit_layer + 1, T_b, D) of each utterance to L + 1 tensors (B, T, D).

    Missing layers are the exit layer's. An utterance goes on with its last frame, as ``s3prl.nn`` lets it: its states
    are then the same in any batch, where zeros would show how long the others are.
    """
    longest = max(each.shape[1] for each in states)
    rows = torch.stack(
        [
            each[:, torch.arange(longest).clamp(max=each.shape[1] - 1)][
                torch.arange(num_layers + 1).clamp(max=len(each) - 1)
            ]
            for each in states
        ],
        1,
    )
    return rows.unbind()
