"""The upstream as s3prl calls it: a list of waveforms in, a dictionary of states out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from s3prl.upstream.interfaces import SAMPLE_RATE, UpstreamBase
from torch import Tensor, nn

import daisy
from daisy import checkpoints
from daisy.encoder import EarlyExitEncoder
from daisy.errors import AudioError, CheckpointError
from daisy.policies import Never, Window
from s3prl_upstream import frozen
from s3prl_upstream.cache import StateCache
from s3prl_upstream.frozen import Batch, Needs, Utterance
from s3prl_upstream.policy import resolve


class UpstreamExpert(UpstreamBase):
    """A HuBERT in which each utterance exits at its own layer.

    While it is frozen (in evaluation mode, or without gradients or weights that need any), its policy decides. In
    training, all layers run and get gradients, but not the convolutions, as with s3prl's HuBERT.

    Args:
        ckpt: a daisy checkpoint, or a bundled model's name.
        model_config: the exit policy, as for `s3prl_upstream.policy.resolve`.

    Raises:
        CheckpointError: where the checkpoint does not exist, or has another rate than s3prl's 16 kHz.
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
        self._runs(self.encoder)
        self.checkpoint = str(ckpt)
        self.digest = checkpoints.digest(ckpt)
        """Digest of the weights: that of the checkpoint's file, until other weights are loaded."""
        self.needs = Needs()
        self.executed_only = False
        """Return only executed states, utterance by utterance, not padded and repeated for s3prl's featurizer."""
        self.cache: StateCache | None = None
        self.records = False
        """Whether the cache holds runs beyond the exit, which is then decided when they are read."""
        self.last = Batch()
        """Result of the last call, for the exit log."""

    @property
    def num_layers(self) -> int:
        """Number of transformer layers, L."""
        return self.encoder.backbone.config.num_layers

    @property
    def width(self) -> int:
        """Width of the states, D."""
        return self.encoder.backbone.config.width

    def get_downsample_rates(self, key: str) -> int:
        """Return the number of samples between two frames, for any key."""
        return self.encoder.backbone.config.frame_hop

    def exits_off(self) -> None:
        """Run all layers from now on, as heads and thresholds do not apply to changed weights."""
        self.encoder = EarlyExitEncoder(self.encoder.backbone, self.encoder.heads, Never())
        self._runs(self.encoder)

    def weights_were_loaded(self) -> None:
        """Note that other weights than the checkpoint's were loaded, and use their digest from now on."""
        digest = hashlib.sha256()
        for name, value in sorted(self.encoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().data)
        self.digest = digest.hexdigest()

    def take(self, needs: Needs) -> None:
        """Return this part of the executed states, unpadded, utterance by utterance, in ``states``."""
        self.needs, self.executed_only = needs, True
        encoder = self.encoder
        if needs.layer == "exit":
            stride = encoder.score_stride
            parts = encoder.backbone, encoder.heads, encoder.policy
            self._runs(EarlyExitEncoder(*parts, keep="last", score_stride=stride))

    def cache_in(self, folder: Path, dtype: str, full: bool = False) -> None:
        """Keep states on disk from now on; call `take` before.

        Args:
            folder: folder of the cache.
            dtype: data type of the states there.
            full: keep full runs, which all policies share, instead of only the layers that this policy executes.

        Raises:
            OutputError: where the folder cannot be written.
        """
        policy = self.encoder.policy
        self.records = full or isinstance(policy, Window)
        if self.records:
            self._runs(frozen.make_recorder(self.encoder, full))
        self.cache = StateCache(
            folder,
            checkpoint=self.digest,
            policy={"name": "any", "scores": self.recorder.score_names} if full else policy.to_config(),
            score_stride=self.encoder.score_stride,
            needs=self._stored,
            dtype=dtype,
            device=self.encoder.backbone.device.type,
        )

    def _runs(self, encoder: EarlyExitEncoder) -> None:
        """Set the encoder that runs: it keeps the states needed, and with a cache does not depend on the batch.

        It shares the weights of `encoder`, whose names are those in checkpoints, so it must not be a submodule.
        """
        object.__setattr__(self, "recorder", encoder)

    @property
    def _stored(self) -> Needs:
        """The part of the states that the cache keeps."""
        return frozen.recorded_needs(self.needs) if self.records else self.needs

    def forward(self, wavs: Sequence[Tensor]) -> dict:
        """Run a batch.

        Args:
            wavs: B waveforms (N_b,) at 16 kHz, of any lengths from one frame on.

        Returns:
            ``exit_layer`` (B,) and ``num_frames`` (B,), int64 on the CPU, and for s3prl's featurizer ``hidden_states``,
            a tuple of L + 1 tensors (B, T, D), layer 0 first, with the exit layer's for layers not run and the
            last frame after an utterance's end; ``hidden_state_0`` to ``hidden_state_L``, and
            ``last_hidden_state``. With `executed_only`, instead of these, ``states``, a list of B tensors (n, T_b, D):
            the part of the executed layers that `needs` takes.

        Raises:
            AudioError: on an utterance shorter than a frame, of several channels, or (on the CPU) with samples that are
                not numbers.
            OutputError: where the cache cannot be written.
        """
        self._check(wavs)
        learns = self.training and torch.is_grad_enabled()
        if learns and any(weight.requires_grad for weight in self.encoder.backbone.parameters()):
            self.last = self._with_gradients(wavs)
        else:
            self.last = self._frozen(wavs)
        states = [utterance.states for utterance in self.last.utterances]
        batch = self.last.utterances
        outputs: dict = {
            "exit_layer": torch.tensor([utterance.exit_layer for utterance in batch]),
            "num_frames": torch.tensor([utterance.num_frames for utterance in batch]),
        }
        self._let_go()
        if self.executed_only:
            return {**outputs, "states": states}
        layers = pad_states(states, self.num_layers)
        outputs |= {f"hidden_state_{layer}": state for layer, state in enumerate(layers)}
        return {**outputs, "hidden_states": layers, "last_hidden_state": layers[-1]}

    def _check(self, wavs: Sequence[Tensor]) -> None:
        span = self.encoder.backbone.config.frame_span
        for index, wav in enumerate(wavs):
            if wav.dim() != 1:
                raise AudioError(
                    f"utterance {index} of a batch of {len(wavs)} is of shape {tuple(wav.shape)}: "
                    "one channel is wanted, (samples,)"
                )
            if len(wav) < span:
                digest = frozen.audio_digest(wav)[:16]
                raise AudioError(
                    f"utterance {index} of a batch of {len(wavs)} has {len(wav)} samples (audio {digest}); "
                    f"one frame needs {span}"
                )

    def _let_go(self) -> None:
        """Free the states, as the log does not need them and the next batch needs their memory."""
        for utterance in self.last.utterances:
            utterance.states = torch.empty(0)

    def _frozen(self, wavs: Sequence[Tensor]) -> Batch:
        start = time.perf_counter()
        digests = [frozen.audio_digest(wav) for wav in wavs]
        digest_sec = time.perf_counter() - start
        if self.cache is None:
            return frozen.encode(self.recorder, wavs, digests, self.needs)
        policy, cache = self.encoder.policy, self.cache

        def compute(indices: list[int]) -> Batch:
            part = [wavs[i] for i in indices], [digests[i] for i in indices]
            return frozen.encode(self.recorder, *part, self._stored)

        batch = cache.batch(digests, self.encoder.backbone.device, compute)
        if self.records:
            batch.utterances = frozen.decide_exits(policy, batch.utterances, self.needs)
        batch.cache_sec += digest_sec
        return batch

    def _with_gradients(self, wavs: Sequence[Tensor]) -> Batch:
        """Run all layers with gradients; keep them all, or the one that is needed."""
        start = time.perf_counter()
        backbone, wanted = self.encoder.backbone, self.needs.layer
        self.encoder.refresh_weights()  # s3prl's optimizers change weights behind autograd's back (``p.data.addcdiv_``)
        num_samples = torch.tensor([len(wav) for wav in wavs])
        with torch.no_grad():
            features, num_frames = backbone.front_end(nn.utils.rnn.pad_sequence(list(wavs), True), num_samples)
        layers = backbone.run_layers(backbone.embed(features, num_frames), num_frames)
        if wanted != "all":
            layers = [layers[self.num_layers if wanted == "exit" else int(wanted)]]
        utterances = [
            Utterance(
                audio=frozen.audio_digest(wav),
                num_samples=len(wav),
                num_frames=n,
                exit_layer=self.num_layers,
                scores={},
                states=states[:, :n],
            )
            for wav, n, states in zip(wavs, num_frames.tolist(), torch.stack(layers, 1), strict=True)
        ]
        return Batch(utterances=utterances, computed_sec=time.perf_counter() - start)


def pad_states(states: Sequence[Tensor], num_layers: int) -> tuple[Tensor, ...]:
    """Pad the states (exit_layer + 1, T_b, D) of each utterance to L + 1 tensors (B, T, D).

    Missing layers repeat the exit layer. An utterance is padded with its last frame, as in ``s3prl.nn``: its states
    are then the same in any batch, where zeros would show how long the others are.
    """
    longest, width = max(kept.shape[1] for kept in states), states[0].shape[2]
    rows = states[0].new_empty(num_layers + 1, len(states), longest, width)
    for b, kept in enumerate(states):
        executed, frames = kept.shape[:2]
        rows[:executed, b, :frames] = kept
        rows[:executed, b, frames:] = kept[:, -1:]
        rows[executed:, b] = rows[executed - 1, b]
    return rows.unbind()
