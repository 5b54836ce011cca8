"""What each part costs: multiply-accumulates, exact for the shapes and blind to memory; or seconds on this machine.

On CPUs the exit loop does a few more (`daisy.kernels.rounded`), at most an eighth and on long batches a sixteenth;
attention in bfloat16 a quarter.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import numpy
import torch
from torch import Tensor

from daisy import frames, graphs
from daisy.backbone import Backbone, BackboneConfig
from daisy.heads import ExitHeads, HeadsConfig
from daisy.inference import prepared, prepared_heads
from daisy.layout import Layout
from daisy.policies import Deadline, Never, Policy
from daisy.steps import Steps

Cost = tuple[float, float, float]
"""(c0, c1, c2): an utterance of T frames costs c0 + c1 T + c2 T^2."""
TIMED_FRAMES = (50, 100, 200, 400, 800)


def front_end_macs(config: BackboneConfig) -> Cost:
    """Convolutions, projection to the layers' width, and positional convolution.

    A convolution is counted at its outputs a frame, times T; the few more that the recording's ends need are left out.
    """
    channels, macs, outputs = 1, 0.0, config.frame_hop
    for width, kernel, stride in config.conv_layers:
        outputs //= stride
        macs += outputs * kernel * channels * width
        channels = width
    macs += channels * config.width
    macs += config.pos_kernel * config.width * config.width / config.pos_groups
    return 0.0, macs, 0.0


def layer_macs(config: BackboneConfig, heads: HeadsConfig | None = None, score_stride: int = 1) -> Cost:
    """One transformer layer (four projections, attention over all frames, feed-forward), and its unit classifier."""
    projections = 4 * config.width**2 + 2 * config.width * config.ffn_width
    classifier = heads.width * heads.num_units / score_stride if heads else 0.0
    return 0.0, projections + classifier, 2.0 * config.width


def macs_deadline(
    backbone: Backbone, heads: ExitHeads | None, budget: float, then: Policy | None = None, score_stride: int = 1
) -> Deadline:
    """A budget of multiply-accumulates for each utterance.

    Args:
        backbone: what runs.
        heads: the exit heads, where ``then`` reads any.
        budget: multiply-accumulates, front end included.
        then: another rule that may leave earlier.
        score_stride: of the encoder.
    """
    each = layer_macs(backbone.config, heads.config if heads else None, score_stride)
    return Deadline(budget=budget, front_cost=front_end_macs(backbone.config), layer_cost=each, then=then or Never())


def measured_deadline(
    backbone: Backbone,
    heads: ExitHeads | None,
    budget_ms: float,
    then: Policy | None = None,
    score_stride: int = 1,
    repeats: int = 5,
    dtype: str = "float32",
) -> Deadline:
    """A budget of milliseconds for each utterance, from times measured on this machine, utterance by utterance.

    Args:
        backbone: what runs.
        heads: the exit heads, where ``then`` reads any.
        budget_ms: front end included.
        then: another rule that may leave earlier.
        score_stride: of the encoder.
        repeats: of each measurement, whose median counts.
        dtype: of the encoder.
    """
    then = then or Never()
    names = sorted(then.reads - {"draw"})
    steps = graphs.steps(prepared(backbone, dtype), prepared_heads(heads, dtype), names, score_stride)
    fronts, layers = [], []
    generator = torch.Generator().manual_seed(0)
    for num_frames in TIMED_FRAMES:
        length = backbone.config.frame_span + (num_frames - 1) * backbone.config.frame_hop
        waveform = 0.1 * torch.randn(length, generator=generator)
        runs = [_timed(steps, [waveform]) for _ in range(repeats)]
        fronts.append(1000 * statistics.median(run[0] for run in runs))
        layers.append(1000 * statistics.median((run[-1] - run[0]) / (len(run) - 1) for run in runs))
    return Deadline(budget=budget_ms, front_cost=_polynomial(fronts), layer_cost=_polynomial(layers), then=then)


@torch.no_grad()
def seconds_by_layer(
    backbone: Backbone,
    heads: ExitHeads | None,
    waveforms: Sequence[Tensor],
    scores: Iterable[str],
    score_stride: int = 1,
    repeats: int = 3,
) -> Tensor:
    """(L,) seconds of running the front end and layers 1 to l with their scores, utterance by utterance.

    The median over ``repeats`` of the sum over the utterances, so that what else the machine did hardly shows.
    """
    names = sorted(set(scores) - {"draw"})
    steps = graphs.steps(prepared(backbone, "float32"), prepared_heads(heads, "float32"), names, score_stride)
    runs = [_timed(steps, waveforms)[1:] for _ in range(repeats)]
    return torch.tensor([statistics.median(times) for times in zip(*runs, strict=True)])


@torch.no_grad()
def _timed(steps: Steps, waveforms: Sequence[Tensor]) -> list[float]:
    """Seconds until the front end, and each layer with its scores, was done; sums over the utterances."""
    device = steps.inference.device
    marks = [0.0] * (steps.inference.config.num_layers + 1)
    for waveform in waveforms:
        waveform = waveform.to(device)
        for _ in range(3 if device.type == "cuda" else 0):
            _marks(steps, waveform)  # until what is captured is captured
        marks = [sum(pair) for pair in zip(marks, _marks(steps, waveform), strict=True)]
    return marks


def _marks(steps: Steps, waveform: Tensor) -> list[float]:
    """Seconds until the front end was done, and each layer."""
    config, device = steps.inference.config, steps.inference.device
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    layout = Layout(torch.tensor([frames.num_frames(len(waveform), config.conv_layers)]), device)
    found: list[float] = []
    start = time.perf_counter()
    with steps.held(with_readings=False) as run:
        states, before = run.begin([waveform], layout), None
        for layer in range(1, config.num_layers + 1):
            wait()
            found.append(time.perf_counter() - start)
            step = run.layer(layer, states, layout, before)
            states, before = step.states, step.units
        wait()
        found.append(time.perf_counter() - start)
    return found


def _polynomial(times: list[float]) -> Cost:
    """Non-negative (c0, c1, c2) nearest to times at `TIMED_FRAMES`, in relative terms."""
    from scipy.optimize import nnls

    frames = numpy.array(TIMED_FRAMES, dtype=float)
    powers = numpy.stack([numpy.ones_like(frames), frames, frames**2], axis=1)
    measured = numpy.array(times)
    c0, c1, c2 = nnls(powers / measured[:, None], numpy.ones_like(measured))[0].tolist()
    return c0, c1, c2
