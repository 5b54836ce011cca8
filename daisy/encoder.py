"""The encoder around the early-exit loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from daisy.errors import CheckpointError, PolicyError, UsageError
from daisy.models import Backbone, Conformer, CTCHeads, Whisper
from daisy.models.heads import missing_heads
from daisy.models.kinds import AnyBackbone, AnyHeads
from daisy.models.lengths import count_frames
from daisy.models.packing import PackedLayout
from daisy.policies import Deadline, Policy
from daisy.policies.scores import WITHOUT_HEADS, HeadOutputs, available_scores, check_scores, make_draws
from daisy.runtime.batch_state import BatchState
from daisy.runtime.batches import split_batch
from daisy.runtime.cuda_graphs import make_layer_runner
from daisy.runtime.dtypes import Precision, cast_precision, parse_dtype, without_cast
from daisy.runtime.exit_loop import run_layers
from daisy.runtime.exit_output import ExitOutput
from daisy.runtime.layer_runner import (
    ConformerLayerRunner,
    LayerRunner,
    PackedLayerRunner,
    PlainLayerRunner,
    WhisperLayerRunner,
)
from daisy.runtime.packed_backbone import PackedBackbone
from daisy.runtime.packed_heads import PackedCTCHeads, PackedHeads
from daisy.runtime.packing_cache import forget_packed, pack_backbone, pack_heads

Keep = Literal["all", "last"]
"""Which states an encoder keeps: those of every executed layer, or of the exit layer only."""
Waveforms = Tensor | NDArray[Any] | Sequence[Tensor | NDArray[Any]]
"""See `EarlyExitEncoder.forward`."""


class EarlyExitEncoder(nn.Module):
    """Runs each utterance until its policy lets it leave; after its exit nothing more is computed for it.

    An utterance's exit and states do not depend on the others in the batch, but for rounding: products of other sizes
    may sum in another order, on CUDA devices also from one call to the next.

    Args:
        backbone: a HuBERT, a Conformer or Whisper's encoder. The latter two run as plain modules on padded batches, in
            float32, whatever ``fast`` says.
        heads: exit heads, or CTC exits; None if neither the policy nor ``scores`` reads any.
        policy: policy that decides when utterances leave (`daisy.policies`); may be set later, as an attribute.
        keep: "all" keeps the states of every executed layer, "last" only the exit layer's.
        scores: scores to compute besides those that the policy reads.
        score_stride: the heads look at every ``score_stride``-th frame, starting with the first of each utterance.
        dtype: type to compute in: float32, bfloat16 (by name or torch's), or "int8"; see `daisy.runtime.dtypes`.
            States come out as bfloat16 or float32. ``encoder.bfloat16()`` and ``encoder.float()`` set it too; the
            weights themselves stay as they are, and are packed from their full precision.
        exits: layers at which utterances may leave, the last among them; None: those with heads, or without heads all.
            A policy counts exits, not layers: its trajectories and settings have a column or value for each exit.
        fast: False runs the plain modules instead of packed weights: hooks on them fire, ``torch.compile`` sees
            ordinary modules. This computes in float32, and needs float32 weights.

    Raises:
        UsageError: on a dtype or ``keep`` that is none of these, or on "int8" elsewhere than on a CPU.
        PolicyError: on a score that does not exist, an impossible stride, or a policy that does not fit the backbone.
        CheckpointError: on heads that do not fit the backbone, or missing ones.

    Example:
        >>> import daisy, torch
        >>> model = daisy.load("daisy-mini")
        >>> encoder = daisy.EarlyExitEncoder(model.backbone, model.heads, model.policy("forecast"))
        >>> out = encoder([torch.zeros(16000), torch.zeros(8000)])
        >>> out.num_frames.tolist()
        [49, 24]
    """

    def __init__(
        self,
        backbone: AnyBackbone,
        heads: AnyHeads | None,
        policy: Policy,
        *,
        keep: Keep = "all",
        scores: Iterable[str] = (),
        score_stride: int = 1,
        exits: Sequence[int] | None = None,
        dtype: Precision | torch.dtype = "float32",
        fast: bool = True,
    ):
        super().__init__()
        if keep not in get_args(Keep):
            raise UsageError(f"keep must be one of {', '.join(get_args(Keep))}, found {keep!r}")
        if not isinstance(score_stride, int) or isinstance(score_stride, bool) or score_stride < 1:
            raise PolicyError(f"score_stride must be a whole number of frames, at least 1, found {score_stride!r}")
        if heads is not None:
            _check_fit(backbone, heads, score_stride)
        self.backbone, self.heads = backbone, heads
        self._exits = choose_exits(backbone, heads, exits)
        self._keep, self._score_stride, self._fast = keep, score_stride, fast
        self._more_scores = frozenset(scores)
        self.dtype = parse_dtype(dtype, backbone.device)
        self._check_dtype(self.dtype)
        self._runner: PackedLayerRunner | None = None
        self.policy = policy

    @property
    def keep(self) -> Keep:
        """Which states are kept."""
        return self._keep

    @property
    def score_stride(self) -> int:
        """Distance between the frames that the heads look at."""
        return self._score_stride

    @property
    def exits(self) -> tuple[int, ...]:
        """The layers at which utterances may leave, in rising order; the last one is the last layer."""
        return self._exits

    @property
    def fast(self) -> bool:
        """Whether packed weights are run instead of the plain modules."""
        return self._fast and isinstance(self.backbone, Backbone)

    @property
    def policy(self) -> Policy:
        """The policy that decides when utterances leave.

        Raises:
            PolicyError: when a policy is set that does not fit the backbone.
            CheckpointError: when a policy is set that reads heads, and there are none.
        """
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        if not isinstance(policy, Policy):
            raise PolicyError(f"a policy is wanted (daisy.policies), found {type(policy).__name__}")
        score_names = sorted(policy.reads | self._more_scores)
        check_scores(score_names)
        policy.check(len(self.exits))
        if isinstance(policy, Deadline) and not policy.layers and len(self.exits) < self.backbone.config.num_layers:
            raise PolicyError(
                f"policy deadline: counts every layer as an exit, and there are exits at layers "
                f"{', '.join(map(str, self.exits))} only; make it with the encoder's heads or exits"
            )
        head_scores = set(score_names) - WITHOUT_HEADS
        if self.heads is None and head_scores:
            raise missing_heads(f"policy {policy.name}" if policy.reads else "a score asked for", head_scores)
        if lacking := head_scores - available_scores(self.heads):
            reader = f"policy {policy.name}" if lacking & policy.reads else "a score asked for"
            raise CheckpointError(
                f"{reader} reads {', '.join(sorted(lacking))}, which these heads do not give; "
                "use a policy that reads the entropy"
            )
        if getattr(self, "score_names", None) != score_names:
            self._runner = None
        self._policy, self.score_names = policy, score_names

    @property
    def packed(self) -> tuple[PackedBackbone, PackedHeads | PackedCTCHeads | None]:
        """Packed copies of backbone and heads, with their current weights; Conformers and Whisper have no such form."""
        assert isinstance(self.backbone, Backbone)
        return pack_backbone(self.backbone, self.dtype), pack_heads(self.heads, self.dtype)

    def refresh_weights(self) -> None:
        """Pack the weights again at the next call.

        Changed weights are noticed, unless autograd misses the change: ``weight.data.mul_(2)``, or changes in place to
        weights that were made under ``torch.inference_mode``.
        """
        for module in (self.backbone, self.heads):
            if module is not None:
                forget_packed(module)

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
        """Run a batch.

        Args:
            waveforms: float samples at the backbone's rate, full scale 1.0: a list of waveforms, (N_b,) or (1, N_b)
                each, as tensors or numpy arrays; one waveform (N,); or a padded (B, N) batch.
            num_samples: (B,) lengths of a padded batch.
            mask: (B, N) bool instead of ``num_samples``, True where a sample belongs to the utterance (Hugging Face's
                ``attention_mask``); an utterance begins at its row's first sample.
            observe: called with each exit's `daisy.policies.scores.HeadOutputs`.
            on_layer: called with 0 after the front end and with ``l`` after layer l and its scores, before any exit; a
                GPU may still be computing.

        Raises:
            AudioError: on an empty batch, a wrong shape or type, an utterance shorter than one frame or longer than
                Whisper's window, or (on the CPU, where the check is cheap) samples that are NaN or infinite.
        """
        utterances = split_batch(waveforms, num_samples, mask, self.backbone.config.frame_span)
        utterances = [waveform.to(self.backbone.device) for waveform in utterances]
        with torch.autocast(self.backbone.device.type, enabled=False):  # dtype says what to compute in
            return self._run(utterances, observe, on_layer)

    def _run(
        self,
        utterances: list[Tensor],
        observe: Callable[[HeadOutputs], None] | None,
        on_layer: Callable[[int], None] | None,
    ) -> ExitOutput:
        config = self.backbone.config
        num_samples = torch.tensor([len(waveform) for waveform in utterances])
        num_frames = count_frames(num_samples, config.conv_layers)
        batch = BatchState(
            PackedLayout(num_frames, self.backbone.device),
            self.exits,
            self.score_names,
            keep_all=self.keep == "all",
            score_stride=self.score_stride,
        )
        if "draw" in self.score_names:
            batch.draws = make_draws(utterances)
        with self._layer_runner().batch_session(with_head_outputs=observe is not None) as runner:
            states = runner.begin(utterances, batch.layout)
            batch.record_states(states)
            if on_layer is not None:
                on_layer(0)
            run_layers(
                runner,
                batch,
                states,
                range(1, config.num_layers + 1),
                self.policy,
                observe=observe,
                on_layer=on_layer,
            )
        return ExitOutput(
            exit_layer=batch.exit_layer,
            num_frames=num_frames,
            states=batch.stack_states(),
            scores=batch.scores,
            exits=self.exits,
        )

    def _layer_runner(self) -> LayerRunner:
        """Choose the runner of layers and scores, with the current weights."""
        if not self.fast:
            if self.backbone.dtype != torch.float32:
                raise UsageError(f"plain modules {self._why_plain()} need float32 weights, found {self.backbone.dtype}")
            return self._choose_plain_runner()(
                self.backbone, self.heads, self.score_names, self.score_stride, self.exits
            )
        backbone, heads = self.packed
        if self._runner is None or self._runner.parts != (backbone, heads):
            self._runner = make_layer_runner(backbone, heads, self.score_names, self.score_stride, self.exits)
        return self._runner

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EarlyExitEncoder:
        """Move the weights as ``nn.Module`` does; a cast sets ``dtype`` instead of casting them."""
        precision = cast_precision(fn)
        self._check_dtype(precision or self.dtype)
        super()._apply(fn if precision is None else without_cast(fn), recurse)  # type: ignore[no-untyped-call]
        self.dtype = precision or self.dtype
        return self

    def _check_dtype(self, dtype: Precision) -> None:
        if not self.fast and dtype != "float32":
            raise UsageError(f"plain modules {self._why_plain()} compute in float32, not in {dtype}")

    def _choose_plain_runner(self) -> type[PlainLayerRunner]:
        if isinstance(self.backbone, Conformer):
            return ConformerLayerRunner
        return WhisperLayerRunner if isinstance(self.backbone, Whisper) else PlainLayerRunner

    def _why_plain(self) -> str:
        if isinstance(self.backbone, Backbone):
            return "(fast=False)"
        return "(as all of a Conformer)" if isinstance(self.backbone, Conformer) else "(as all of Whisper)"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_runner": None}  # CUDA graphs cannot be copied

    def __repr__(self) -> str:
        config = self.backbone.config
        return (
            f"EarlyExitEncoder({config.num_layers} layers of width {config.width}, policy={self.policy}, "
            f"keep={self.keep!r}, dtype={self.dtype!r}, device={str(self.backbone.device)!r})"
        )


def _check_fit(backbone: AnyBackbone, heads: AnyHeads, score_stride: int) -> None:
    wanted, given = (backbone.config.num_layers, backbone.config.width), (heads.config.num_layers, heads.config.width)
    if given != wanted:
        raise CheckpointError(
            f"exit heads for {given[0]} layers of width {given[1]} do not fit a backbone "
            f"of {wanted[0]} layers of width {wanted[1]}"
        )
    if heads.config.reads == "feed_forward" and not isinstance(backbone, Backbone):
        raise CheckpointError(
            "exit heads that read the feed-forward output are for HuBERT, not for a Conformer or Whisper"
        )
    if score_stride > 1 and isinstance(heads, CTCHeads) and len(heads.attentions):
        raise PolicyError(f"CTC exits with attention look at every frame: score_stride must be 1, found {score_stride}")


def choose_exits(backbone: AnyBackbone, heads: AnyHeads | None, exits: Sequence[int] | None) -> tuple[int, ...]:
    """Choose the layers at which utterances may leave: those with heads, but none inside a block that runs in parallel.

    Args:
        backbone: backbone with these layers.
        heads: heads, whose layers may be exits; None: all layers may.
        exits: some of these layers, in any order; None: all of them.

    Returns:
        The layers, in rising order.

    Raises:
        PolicyError: where one of ``exits`` is not such a layer, or the last layer is missing.
    """
    config = backbone.config
    known = tuple(range(1, config.num_layers + 1)) if heads is None else heads.config.layers
    if isinstance(backbone, Conformer) and backbone.config.split_blocks:
        known = tuple(layer for layer in known if layer in backbone.config.block_ends)
    if exits is None:
        return known
    wanted = sorted(set(exits))
    if not wanted or wanted[-1] != config.num_layers or not set(wanted) <= set(known):
        raise PolicyError(
            f"exits must be some of the layers {', '.join(map(str, known))}, and the last of them, found {list(exits)}"
        )
    return tuple(wanted)
