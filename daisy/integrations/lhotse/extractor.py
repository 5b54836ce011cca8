"""A feature extractor for lhotse, made from a checkpoint and a policy.

lhotse counts ``duration / frame_shift`` frames, rounded half up, and refuses arrays of another length or silently
drops their cuts (`lhotse.qa.validate_features`, called by ``compute_and_store_features_batch`` in a thread). HuBERT
makes a frame of every 400 samples, 320 apart: as many, or one less. Where lhotse counts one more, the last frame is
repeated, as lhotse does when it reads features that are a frame short (``load_features``); the states before it
are unchanged. lhotse's extractors for s3prl and Whisper append a frame of zeros, which is not a state of any speech.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy
import torch
from lhotse import FeatureExtractor
from lhotse.features.base import register_extractor
from lhotse.utils import compute_num_frames_from_samples
from numpy.typing import NDArray
from torch import Tensor

from daisy import audio
from daisy.checkpoints import load
from daisy.errors import AudioError, UsageError
from daisy.extraction.batch_encoder import executed_scores
from daisy.policies import DEFAULT_POLICY
from daisy.policies.scores import available_scores
from daisy.units import HeadUnits
from daisy.units.encoder import classify

Samples = NDArray[Any] | Tensor
Array = TypeVar("Array", NDArray[Any], Tensor)


@dataclass
class DaisyFeaturesConfig:
    """The configuration of a `DaisyFeatures`; lhotse writes all of it to an extractor's YAML."""

    checkpoint: str = "daisy-mini"
    """A file, or the name of a bundled model."""
    policy: str = ""
    """The exit policy, as for `daisy.Model.encoder`: a name or a policy file. Empty: the default policy."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of a policy given by name."""
    layer: int | str = "exit"
    """Layer of the features: "exit", each cut's exit layer, or a number: all cuts run up to that layer."""
    device: str = "cpu"
    dtype: str = "float32"
    """Data type to compute in; features are float32."""
    batch_sec: float = 30.0
    """Seconds of audio that are encoded together. On CPUs small batches are fastest."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for lhotse's YAML."""
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> DaisyFeaturesConfig:
        """Make a configuration from such fields."""
        return DaisyFeaturesConfig(**data)


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """The result of a run for one cut."""

    states: Tensor
    """(T, D) float32 on the CPU, T as lhotse counts frames."""
    exit_layer: int
    predicted_loss: list[float | None]
    """Nats at layers 1 to the exit layer, None at layers without a head; empty if the checkpoint has no heads."""
    units: Tensor | None
    """(T,) int64, those of the exit layer's classifier; None if not requested."""


@register_extractor
class DaisyFeatures(FeatureExtractor):  # type: ignore[misc]
    """Hidden states at each cut's exit layer, or at a fixed layer, as features for lhotse.

    Args:
        config: what to run; None: the bundled model with its default policy.

    Raises:
        CheckpointError: where the checkpoint cannot be read, or lacks heads that the policy reads.
        PolicyError: on a policy or setting that is unknown or invalid.
        UsageError: on a layer that the model does not have, or a layer together with a policy.
    """

    name = "daisy"
    config_type = DaisyFeaturesConfig

    def __init__(self, config: DaisyFeaturesConfig | None = None):
        super().__init__(config)
        self._set_up()

    def _set_up(self) -> None:
        config: DaisyFeaturesConfig = self.config
        self.model = load(config.checkpoint, device=config.device, dtype=config.dtype)  # type: ignore[arg-type]
        heads = self.model.exit_heads()
        options: dict[str, Any] = {"keep": "last", "scores": {"entropy"} & available_scores(heads)}
        if config.layer == "exit":
            policy = config.policy or DEFAULT_POLICY
            self.encoder = self.model.encoder(policy, **options, **config.settings)
            return
        num_layers = self.model.backbone.config.num_layers
        if not isinstance(config.layer, int) or not 1 <= config.layer <= num_layers:
            raise UsageError(f"layer must be 'exit' or a number from 1 to {num_layers}, found {config.layer!r}")
        if config.policy or config.settings:
            raise UsageError(f"with layer {config.layer} all cuts leave there, so no policy goes with it")
        self.encoder = self.model.encoder("fixed", layer=config.layer, **options)

    @property
    def device(self) -> str:
        """The device on which the model runs."""
        return str(self.config.device)

    def to(self, device: str | torch.device) -> None:
        """Move the model to a device."""
        self.config.device = str(device)
        self.encoder.to(device)

    @property
    def frame_shift(self) -> float:
        """Seconds between two frames, 0.02 for HuBERT."""
        config = self.model.backbone.config
        return config.frame_hop / config.sample_rate

    def feature_dim(self, sampling_rate: int) -> int:
        """Return the width of the states."""
        self._check_rate(sampling_rate)
        return self.model.backbone.config.width

    def extract(self, samples: Array, sampling_rate: int) -> Array:
        """Compute the features of one waveform.

        Args:
            samples: (1, N) or (N,), full scale 1.0.
            sampling_rate: sample rate in Hz, the model's.

        Returns:
            (T, D), an array or a tensor like ``samples``.

        Raises:
            UsageError: on another sample rate.
            AudioError: on several channels, or a waveform that is shorter than one frame.
        """
        (encoding,) = self.encode([samples], sampling_rate)
        features: Array = _as_given(encoding.states, samples)
        return features

    def extract_batch(
        self,
        samples: Samples | Sequence[Samples],
        sampling_rate: int,
        lengths: Sequence[int] | Samples | None = None,
    ) -> list[Samples]:
        """Compute the features of several waveforms, each as if computed alone.

        Args:
            samples: a list of waveforms, (1, N_b) or (N_b,) each, or a padded batch (B, N) or (B, 1, N).
            sampling_rate: sample rate in Hz, the model's.
            lengths: (B,) number of samples of each waveform in a padded batch.

        Returns:
            (T_b, D) each, arrays or tensors like ``samples``.

        Raises:
            UsageError: as in `extract`.
            AudioError: likewise.
        """
        if isinstance(samples, numpy.ndarray | Tensor) and samples.ndim == 1:
            samples = [samples]
        waveforms = list(samples)
        if lengths is not None:
            waveforms = [one[..., : int(length)] for one, length in zip(waveforms, lengths, strict=True)]
        encodings = self.encode(waveforms, sampling_rate)
        return [_as_given(one.states, given) for one, given in zip(encodings, waveforms, strict=True)]

    def encode(self, samples: Sequence[Samples], sampling_rate: int, *, units: bool = False) -> list[Encoding]:
        """Run several waveforms, and return their states, exits and scores.

        Args:
            samples: waveforms (1, N_b) or (N_b,) each.
            sampling_rate: sample rate in Hz, the model's.
            units: also return the units that the exit heads predict.

        Returns:
            The result for each waveform.

        Raises:
            UsageError: on another sample rate, or where the model has no heads that predict units from its states.
            AudioError: as in `extract`.
        """
        self._check_rate(sampling_rate)
        classifier = self._make_classifier() if units else None
        waveforms = [self._read_waveform(one) for one in samples]
        encodings: dict[int, Encoding] = {}
        lengths = [len(waveform) for waveform in waveforms]
        for indices in audio.batch_by_length(lengths, int(self.config.batch_sec * sampling_rate)):
            result = self.encoder([waveforms[index] for index in indices])
            classified = classify(classifier, result) if classifier is not None else [None] * len(indices)
            for row, (index, of_units) in enumerate(zip(indices, classified, strict=True)):
                encodings[index] = Encoding(
                    states=self._fit(result.states[row][-1].float().cpu(), lengths[index]),
                    exit_layer=int(result.exit_layer[row]),
                    predicted_loss=executed_scores(result, row).get("entropy", []),
                    units=None if of_units is None else self._fit(of_units, lengths[index]),
                )
        return [encodings[index] for index in range(len(waveforms))]

    def check(self, samples: Samples) -> None:
        """Check that a waveform can be encoded.

        Args:
            samples: waveform (1, N) or (N,).

        Raises:
            AudioError: on several channels, or a waveform that is shorter than one frame.
        """
        self._read_waveform(samples)

    def _check_rate(self, sampling_rate: int) -> None:
        expected = self.model.backbone.config.sample_rate
        if sampling_rate != expected:
            raise UsageError(
                f"{self.config.checkpoint} hears {expected} Hz, found {sampling_rate} Hz: cuts.resample({expected}) "
                "changes it"
            )

    def _make_classifier(self) -> HeadUnits:
        heads = self.model.heads
        if heads is None or heads.config.reads == "feed_forward":
            raise UsageError(f"{self.config.checkpoint} has no exit heads that tell units from its states")
        return HeadUnits(heads)

    def _read_waveform(self, samples: Samples) -> Tensor:
        """Convert one waveform to (N,) on the CPU."""
        waveform = torch.as_tensor(samples).cpu()
        if waveform.ndim == 2 and len(waveform) > 1:
            raise AudioError(
                f"a cut has {len(waveform)} channels, and one is wanted: cut.to_mono() splits or mixes them"
            )
        waveform, span = waveform.reshape(-1), self.model.backbone.config.frame_span
        if len(waveform) < span:
            raise AudioError(f"a cut is too short: {len(waveform)} samples, one frame needs {span}")
        return waveform

    def _fit(self, frames: Tensor, num_samples: int) -> Tensor:
        """Fit frames (T, ...) to the number that lhotse counts; see the module's docstring."""
        rate = self.model.backbone.config.sample_rate
        wanted = compute_num_frames_from_samples(num_samples, self.frame_shift, rate)
        return torch.cat([frames, frames[-1:].expand(wanted - len(frames), *frames.shape[1:])])[:wanted]

    def __getstate__(self) -> dict[str, object]:
        return {"config": self.config}  # other processes load the checkpoint again

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.config = state["config"]
        self._set_up()


def _as_given(states: Tensor, samples: Any) -> Any:
    return states if isinstance(samples, Tensor) else states.numpy()
