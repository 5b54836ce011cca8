"""A backbone with what belongs to it: heads, default policies, and the encoders that they make."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from daisy import _files
from daisy import policies as exit_policies
from daisy.encoder import EarlyExitEncoder, Keep
from daisy.errors import PolicyError
from daisy.models import Backbone, ExitHeads, FinalHead
from daisy.models.heads import missing_heads
from daisy.policies.file import read_policy
from daisy.policies.scores import WITHOUT_HEADS
from daisy.runtime.dtypes import Precision, cast_precision, without_cast


class Model(nn.Module):
    """A backbone, its heads and its default policies.

    An ordinary module: ``to``, ``parameters`` and ``state_dict`` are torch's. Weights stay in float32; a dtype given to
    ``to`` (or `daisy.load`) is what the encoders made afterwards compute in.

    Args:
        backbone: the layers.
        heads: the exit heads; None where there are none.
        final_head: HuBERT's own prediction head; None where the source had none (fine-tuned models, Hugging Face).
        policies: default settings of policies for this model, by policy name.
        provenance: where it comes from: source, training data, calibration.

    Example:
        >>> import daisy, torch
        >>> model = daisy.load("daisy-mini")
        >>> encoder = model.encoder("entropy", threshold=2.0)
        >>> out = encoder(torch.zeros(16000))
        >>> out.last_hidden_state.shape
        torch.Size([1, 49, 256])
    """

    backbone: Backbone
    heads: ExitHeads | None
    final_head: FinalHead | None

    def __init__(
        self,
        *,
        backbone: Backbone,
        heads: ExitHeads | None = None,
        final_head: FinalHead | None = None,
        policies: dict[str, dict[str, Any]] | None = None,
        provenance: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.backbone, self.heads, self.final_head = backbone, heads, final_head
        self.policies = {} if policies is None else policies
        self.provenance = {} if provenance is None else provenance
        self.path: Path | None = None
        """The file that it was read from."""
        self.dtype: Precision = "float32"
        """What its encoders compute in, where they are not told otherwise."""
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.backbone.device

    def policy(self, name: str, **settings: float | int) -> exit_policies.Policy:
        """Make a policy from this model's default settings, overridden by ``settings``.

        Args:
            name: of `daisy.policies.POLICIES`.
            settings: of the policy, by name.

        Raises:
            PolicyError: where a setting is unknown, impossible, or neither given nor stored.
            CheckpointError: where it reads heads, and there are none.
        """
        known = exit_policies.POLICIES.get(name)
        head_scores = set(known.scores) - WITHOUT_HEADS if known else set()
        if self.heads is None and head_scores:
            raise missing_heads(f"policy {name}", head_scores)
        return exit_policies.make_policy(name, {**self.policies.get(name, {}), **settings})

    def encoder(
        self,
        policy: str | Path | exit_policies.Policy = exit_policies.DEFAULT_POLICY,
        *,
        keep: Keep = "all",
        scores: Iterable[str] = (),
        score_stride: int | None = None,
        dtype: Precision | torch.dtype | None = None,
        fast: bool = True,
        **settings: float | int,
    ) -> EarlyExitEncoder:
        """Make an encoder that leaves by a policy.

        Args:
            policy: a name ("forecast"), a file of ``daisy calibrate`` ("policy.json"), or a policy.
            keep: of `EarlyExitEncoder`, as ``scores`` and ``fast``.
            scores: likewise.
            score_stride: likewise; where None that which the policy file was made with, or 1.
            dtype: likewise; where None `dtype`.
            fast: likewise.
            settings: of a policy given by name: ``threshold=1.2``.

        Raises:
            PolicyError: where the policy, its file or a setting is unknown, impossible, or made for another model.
            CheckpointError: where the policy reads heads, and there are none.
            UsageError: as `EarlyExitEncoder` does.

        Example:
            >>> import daisy
            >>> daisy.load("daisy-mini").encoder("fixed", layer=6, keep="last").policy
            Fixed(layer=6)
        """
        stride = 1
        if isinstance(policy, Path) or (isinstance(policy, str) and _is_file_name(policy)):
            _refuse_settings(settings, "a policy file brings its own")
            policy, stride = self._read_policy(Path(policy))
        elif isinstance(policy, str):
            policy = self.policy(policy, **settings)
        else:
            _refuse_settings(settings, "a policy that is made already has its own; use dataclasses.replace")
        return EarlyExitEncoder(
            self.backbone,
            self.heads,
            policy,
            keep=keep,
            scores=scores,
            score_stride=stride if score_stride is None else score_stride,
            dtype=self.dtype if dtype is None else dtype,
            fast=fast,
        )

    def _read_policy(self, path: Path) -> tuple[exit_policies.Policy, int]:
        if self.path is None:
            raise PolicyError(f"{path}: is for one checkpoint's file, and this model was not read from one")
        try:
            digest = _files.digest(self.path)
        except OSError as error:
            raise PolicyError(
                f"{path}: is for one checkpoint, and {self.path} cannot be read again to compare ({error.strerror})"
            ) from None
        return read_policy(path, checkpoint=self.path.stem, digest=digest)

    def parts(self) -> dict[str, nn.Module]:
        """Return the parts that exist, by their prefix in the file."""
        return dict(self.named_children())

    def config(self) -> dict[str, Any]:
        """Return what a checkpoint's metadata holds."""
        head = self.final_head
        return {
            "backbone": dataclasses.asdict(self.backbone.config),
            "final_head": head
            and {
                "final_dim": head.embeddings.shape[1],
                "num_units": head.num_units,
                "temperature": head.temperature,
            },
            "heads": self.heads and dataclasses.asdict(self.heads.config),
            "policies": self.policies,
            "provenance": self.provenance,
        }

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Model:
        cast = cast_precision(fn)
        super()._apply(fn if cast is None else without_cast(fn), recurse)  # type: ignore[no-untyped-call]
        self.dtype = cast or self.dtype
        return self

    def __repr__(self) -> str:
        config, heads = self.backbone.config, self.heads
        norm = "pre-norm" if config.pre_norm else "post-norm"
        shown = (
            f"{heads.config.num_units} units" + (", loss regressors" if heads.regressors else "") if heads else "none"
        )
        lines = [
            f"backbone: {config.num_layers} layers of width {config.width}, {norm}, {config.sample_rate} Hz",
            f"exit heads: {shown}",
            f"final head: {f'{self.final_head.num_units} units' if self.final_head else 'none'}",
            f"policies: {', '.join(self.policies) or 'none'}",
            f"device: {self.device}, dtype: {self.dtype}",
        ]
        return "Model(\n" + "".join(f"  {line}\n" for line in lines) + ")"


def _is_file_name(policy: str) -> bool:
    """Whether a text is no policy's name, and looks like a file's."""
    return policy not in exit_policies.POLICIES and (bool(Path(policy).suffix) or Path(policy).is_file())


def _refuse_settings(settings: Mapping[str, object], reason: str) -> None:
    if settings:
        raise PolicyError(f"{', '.join(settings)} cannot be set here: {reason}")
