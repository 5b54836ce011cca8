"""Run a checkpoint with its exits in mteb, whose audio tasks (MAEB) take one vector per recording."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from daisy import audio
from daisy.checkpoints import Model, digest, load
from daisy.policies import DEFAULT_POLICY, Policy

try:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("mteb is not installed: pip install 'mteb[audio]' has it") from error


class DaisyEncoder(AbsEncoder):  # type: ignore[misc]
    """An encoder that returns the mean of each recording's states at its exit layer.

    States of several layers do not lie in one space: for tasks that compare vectors, let all exit at one layer
    (``policy="fixed", layer=6``).

    Args:
        model_name: a checkpoint's file, or the name of a bundled model.
        revision: accepted for mteb, without effect.
        policy: the exit policy, as for `daisy.Model.encoder`.
        device: device to run on.
        batch_sec: seconds of audio that are encoded together.
        settings: settings of the policy.

    Raises:
        CheckpointError: as in `daisy.load` and `daisy.Model.encoder`.
        PolicyError: as in `daisy.Model.encoder`.
    """

    def __init__(
        self,
        model_name: str = "daisy-mini",
        revision: str | None = None,
        *,
        policy: str = DEFAULT_POLICY,
        device: str = "cpu",
        batch_sec: float = 30.0,
        **settings: Any,
    ):
        model = load(model_name, device=device)
        self.encoder = model.encoder(policy, keep="last", **settings)
        self.sample_rate = model.backbone.config.sample_rate
        self.batch_sec = batch_sec
        self.exit_layers: list[int] = []
        """Exit layers of all recordings so far."""
        made_with = {"policy": policy, "device": device, "batch_sec": batch_sec, **settings}
        loader = partial(_load_again, str(model.path), made_with)
        self.mteb_model_meta = _describe(model, self.encoder.policy, loader)

    def encode(self, inputs: Any, **kwargs: Any) -> NDArray[Any]:
        """Encode the recordings of a task.

        Args:
            inputs: a ``DataLoader`` of rows with ``audio``: ``array``, (N,) or (C, N), and ``sampling_rate``.
            kwargs: the task, its split and more, without effect.

        Returns:
            Vectors (recordings, D) float32.
        """
        inputs.collate_fn = self._collate
        return torch.cat([self._encode_batch(waveforms) for waveforms in inputs]).numpy()

    def _collate(self, rows: list[dict[str, Any]]) -> list[Tensor]:
        """Convert the waveforms to the model's rate, and pad those that are shorter than one frame with zeros."""
        waveforms = []
        for row in rows:
            waveform = torch.as_tensor(row["audio"]["array"], dtype=torch.float32)
            waveform = waveform.mean(0) if waveform.ndim == 2 else waveform
            waveform = audio.resample(waveform, int(row["audio"]["sampling_rate"]), self.sample_rate)
            missing = self.encoder.backbone.config.frame_span - len(waveform)
            waveforms.append(F.pad(waveform, (0, max(missing, 0))))
        return waveforms

    def _encode_batch(self, waveforms: list[Tensor]) -> Tensor:
        vectors: dict[int, Tensor] = {}
        exits: dict[int, int] = {}
        lengths = [len(waveform) for waveform in waveforms]
        for indices in audio.batch_by_length(lengths, int(self.batch_sec * self.sample_rate)):
            result = self.encoder([waveforms[index] for index in indices])
            for index, states, layer in zip(indices, result.states, result.exit_layer.tolist(), strict=True):
                vectors[index], exits[index] = states[-1].float().mean(0).cpu(), layer
        self.exit_layers += [exits[index] for index in range(len(waveforms))]
        return torch.stack([vectors[index] for index in range(len(waveforms))])


def _load_again(
    path: str, made_with: dict[str, Any], name: str, /, *, device: str | None = None, **noted: Any
) -> DaisyEncoder:
    """Make an encoder again when mteb loads a recorded model, whose name is not that of a file."""
    return DaisyEncoder(path, **{**made_with, "device": device or made_with["device"]})


def _describe(model: Model, policy: Policy, loader: Callable[..., DaisyEncoder]) -> ModelMeta:
    """Make mteb's record of a model; another policy or file counts as another model."""
    assert model.path is not None
    return ModelMeta(
        loader=loader,
        name=f"daisy/{model.path.stem}",
        revision=digest(model.path),
        experiment_kwargs=policy.to_config(),
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        embed_dim=model.backbone.config.width,
        modalities=["audio"],
        framework=["PyTorch"],
        similarity_fn_name="cosine",
        use_instructions=False,
        release_date=None,
        languages=None,
        memory_usage_mb=None,
        max_tokens=None,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        training_datasets=None,
    )
