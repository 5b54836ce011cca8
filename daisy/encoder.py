"""The only early-exit loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from daisy import frames, graphs
from daisy import scores as score_functions
from daisy.backbone import Backbone
from daisy.errors import AudioError, CheckpointError, PolicyError
from daisy.heads import ExitHeads, missing_heads
from daisy.inference import Inference, PreparedHeads, check_dtype, prepared, prepared_heads
from daisy.layout import Layout
from daisy.policies import Policy
from daisy.steps import Step, Steps

KEEP = ("all", "last")


@dataclass(frozen=True, kw_only=True)
class ExitOutput:
    """What an early-exit run returns, for B utterances of a backbone with L layers."""

    exit_layer: Tensor
    """(B,) int64 on the CPU, 1 to L: the last layer executed."""
    num_frames: Tensor
    """(B,) int64 on the CPU."""
    states: list[Tensor]
    """Per utterance, layers 0 to the exit layer: (exit_layer + 1, T_b, D); with ``keep="last"`` (1, T_b, D)."""
    scores: dict[str, Tensor]
    """Each score (B, L) float32 on the CPU; NaN where the layer was not executed."""


class EarlyExitEncoder(nn.Module):
    """Runs each utterance until its policy says that it may leave; who left is no longer computed.

    An utterance's exit and states do not depend on the others in the batch, but for rounding: products of other sizes
    may sum in another order, on CUDA devices also from one call to the next.

    Args:
        backbone: the layers.
        heads: the exit heads; None where neither the policy nor ``scores`` reads any.
        policy: decides who leaves (`daisy.policies`).
        keep: "all" keeps the states of every executed layer, "last" only the exit layer's.
        scores: scores to compute besides those that the policy reads.
        score_stride: the heads look at every ``score_stride``-th frame, the first of each utterance on.
        dtype: "float32"; "bfloat16" or "int8" to compute in these, see `daisy.inference.Inference`; states come out as
            bfloat16 or float32.

    Raises:
        UsageError: on a dtype that is none of these, or "int8" elsewhere than on a CPU.
        PolicyError: on a score that does not exist, an impossible stride, or a policy that does not fit the backbone.
        CheckpointError: on heads that do not fit the backbone, or missing ones.
    """

    def __init__(
        self,
        backbone: Backbone,
        heads: ExitHeads | None,
        policy: Policy,
        *,
        keep: str = "all",
        scores: Iterable[str] = (),
        score_stride: int = 1,
        dtype: str = "float32",
    ):
        super().__init__()
        self.score_names = sorted(policy.reads | set(scores))
        score_functions.check(self.score_names)
        policy.check(backbone.config.num_layers)
        if keep not in KEEP:
            raise PolicyError(f"keep must be one of {', '.join(KEEP)}, found {keep!r}")
        of_heads = set(self.score_names) - score_functions.WITHOUT_HEADS
        if heads is None and of_heads:
            raise missing_heads(f"policy {policy.name}" if policy.reads else "a score asked for", of_heads)
        if score_stride < 1:
            raise PolicyError(f"score_stride must be at least 1 frame, found {score_stride}")
        if heads is not None and (heads.config.num_layers, heads.config.width) != (
            backbone.config.num_layers,
            backbone.config.width,
        ):
            raise CheckpointError(
                f"exit heads for {heads.config.num_layers} layers of width {heads.config.width} do not fit a backbone "
                f"of {backbone.config.num_layers} layers of width {backbone.config.width}"
            )
        self.backbone = backbone
        self.heads = heads
        self.policy = policy
        self.keep = keep
        self.score_stride = score_stride
        self.dtype = check_dtype(dtype, backbone.device)
        self._known: Steps | None = None

    @property
    def inference(self) -> tuple[Inference, PreparedHeads | None]:
        """Backbone and heads laid out for speed, as their weights are now."""
        return prepared(self.backbone, self.dtype), prepared_heads(self.heads, self.dtype)

    @torch.no_grad()
    def forward(
        self,
        waveforms: Sequence[Tensor] | Tensor,
        num_samples: Tensor | None = None,
        observe: Callable[[score_functions.Reading], None] | None = None,
    ) -> ExitOutput:
        """Run a batch.

        Args:
            waveforms: a list of 1-D float waveforms at the backbone's rate, or a padded (B, N) batch.
            num_samples: (B,) lengths of a padded batch; a list needs none.
            observe: called with each layer's `daisy.scores.Reading`.

        Raises:
            AudioError: on an empty batch, a wrong shape or type, an utterance shorter than one frame, or (on the CPU,
                where looking is cheap) samples that are no numbers.
        """
        utterances = self._checked(waveforms, num_samples)
        with torch.autocast(self.backbone.device.type, enabled=False):  # dtype says what to compute in
            return self._run(utterances, observe)

    def _run(self, utterances: list[Tensor], observe: Callable[[score_functions.Reading], None] | None) -> ExitOutput:
        config = self.backbone.config
        num_samples = torch.tensor([len(waveform) for waveform in utterances])
        num_frames = frames.num_frames(num_samples, config.conv_layers)
        layout = Layout(num_frames, self.backbone.device)
        run = _Run(layout, config.num_layers, self.score_names, keep_all=self.keep == "all", stride=self.score_stride)
        if "draw" in self.score_names:
            run.draws = score_functions.draws(utterances)
        with self._steps().held(with_readings=observe is not None) as steps:
            states = steps.begin(utterances, run.layout)
            run.record(0, states)
            for layer in range(1, config.num_layers + 1):
                step = steps.layer(layer, states, run.layout, run.units_before)
                run.record(layer, step.states)
                run.score(layer, steps.names, step)
                if observe is not None:
                    assert step.reading is not None
                    observe(step.reading)
                states = run.leave(layer, self._leave(layer, run), step.states)
                if not len(run.active):
                    break
        return ExitOutput(exit_layer=run.exit_layer, num_frames=num_frames, states=run.states(), scores=run.scores)

    def _leave(self, layer: int, run: _Run) -> Tensor:
        """(active,) bool on the CPU."""
        if layer == self.backbone.config.num_layers:
            return torch.ones(len(run.active), dtype=torch.bool)
        leave = self.policy.decide({name: run.trajectory(name, layer) for name in self.policy.reads}, layer)
        return leave.cpu().expand(len(run.active))

    def _steps(self) -> Steps:
        """Layers and scores, with the weights as they are now."""
        inference, heads = self.inference
        if self._known is None or self._known.inference is not inference or self._known.heads is not heads:
            self._known = graphs.steps(inference, heads, self.score_names, self.score_stride)
        return self._known

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_known": None}  # CUDA graphs cannot be copied

    def _checked(self, waveforms: Sequence[Tensor] | Tensor, num_samples: Tensor | None) -> list[Tensor]:
        """Waveforms (N_b,) float32 on the backbone's device."""
        if isinstance(waveforms, Tensor):
            if waveforms.ndim != 2:
                raise AudioError(f"a padded batch must be (utterances, samples), found {tuple(waveforms.shape)}")
            if num_samples is None:
                raise AudioError("a padded batch needs num_samples, the length of each utterance")
            lengths = num_samples.cpu().long()
            if len(lengths) != len(waveforms) or (len(lengths) and int(lengths.max()) > waveforms.shape[1]):
                raise AudioError(f"num_samples {lengths.tolist()} does not fit a batch of {tuple(waveforms.shape)}")
            waveforms = [waveform[:length] for waveform, length in zip(waveforms, lengths.tolist(), strict=True)]
        else:
            for index, waveform in enumerate(waveforms):
                if not isinstance(waveform, Tensor):
                    raise AudioError(f"utterance {index} must be a torch tensor, found {type(waveform).__name__}")
                if waveform.ndim != 1:
                    raise AudioError(f"utterance {index} must be one-dimensional, found {tuple(waveform.shape)}")
        if not len(waveforms):
            raise AudioError("an empty batch: give at least one utterance")
        for index, waveform in enumerate(waveforms):
            if len(waveform) < self.backbone.config.frame_span:
                raise AudioError(
                    f"utterance {index} has {len(waveform)} samples; one frame needs {self.backbone.config.frame_span}"
                )
            if not waveform.is_floating_point():
                raise AudioError(f"waveforms must be floating point, full scale 1.0, found {waveform.dtype}")
            if waveform.device.type == "cpu" and not waveform.isfinite().all():
                raise AudioError(f"utterance {index} holds samples that are NaN or infinite")
        return [waveform.to(self.backbone.device, torch.float32) for waveform in waveforms]


class _Run:
    """The books of one batch: who is still in it, what was computed for whom."""

    def __init__(self, layout: Layout, num_layers: int, score_names: Sequence[str], *, keep_all: bool, stride: int):
        batch = len(layout)
        self.keep_all, self.stride = keep_all, stride
        self.active = torch.arange(batch)
        self.layout = layout
        self.exit_layer = torch.zeros(batch, dtype=torch.int64)
        self.scores = {name: torch.full((batch, num_layers), torch.nan) for name in score_names}
        self.kept: list[list[Tensor]] = [[] for _ in range(batch)]
        self.units_before: Tensor | None = None
        self.draws: Tensor | None = None

    def record(self, layer: int, states: Tensor) -> None:
        """Keep views of layer ``layer``'s states, (F, D) of those who are active."""
        for utterance, own in zip(self.active.tolist(), states.split(self.layout.lengths), strict=True):
            if self.keep_all:
                self.kept[utterance].append(own)
            else:
                self.kept[utterance] = [own]

    def score(self, layer: int, names: Sequence[str], step: Step) -> None:
        """Note layer ``layer``'s scores, those of heads by their names; a GPU is waited for once."""
        self.units_before = step.units
        values = {} if step.scores is None else dict(zip(names, step.scores.cpu(), strict=True))
        reading = score_functions.Reading(None, layer, step.states, self.layout, draws=self.draws)
        for name, noted in self.scores.items():
            value = values[name] if name in values else score_functions.SCORES[name](reading)
            noted[self.active, layer - 1] = value

    def trajectory(self, name: str, layer: int) -> Tensor:
        """(active, layer) scores of layers 1 to ``layer``."""
        return self.scores[name][self.active, :layer]

    def leave(self, layer: int, leave: Tensor, states: Tensor) -> Tensor:
        """Take out who leaves, (active,) bool; returns the states of those who stay."""
        if not leave.any():
            return states
        self.exit_layer[self.active[leave]] = layer
        stay = ~leave
        if self.draws is not None:
            self.draws = self.draws[stay]
        if self.units_before is not None:
            self.units_before = self.layout.strided(self.stride).rows_of(self.units_before, stay)
        states = self.layout.rows_of(states, stay)
        self.active, self.layout = self.active[stay], self.layout.of(stay)
        return states

    def states(self) -> list[Tensor]:
        """Per utterance its kept layers, (layers, T_b, D), without padding."""
        return [torch.stack(kept) for kept in self.kept]
