"""Count or measure the cost of each part: multiply-accumulates, exact for the shapes but blind to memory, or seconds.

On CPUs the exit loop does a few more (`daisy.runtime.linear.round_up_rows`): at most an eighth, and a sixteenth on
long batches; attention in bfloat16 does up to a quarter more.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Sequence

import numpy
import torch
from torch import Tensor

from daisy.encoder import EarlyExitEncoder
from daisy.models import ConformerConfig, HeadsConfig, WhisperConfig
from daisy.models.conformer_config import MELS_BETWEEN_FRAMES
from daisy.models.kinds import AnyBackbone, AnyBackboneConfig, AnyHeads, AnyHeadsConfig
from daisy.models.whisper_config import FFT_SIZE
from daisy.policies import Deadline, Never, Policy
from daisy.policies.scores import WITHOUT_HEADS
from daisy.runtime.dtypes import Precision

Cost = tuple[float, float, float]
"""(c0, c1, c2): an utterance of T frames costs c0 + c1 T + c2 T^2."""
TIMED_FRAMES = (50, 100, 200, 400, 800)


def count_front_end_macs(config: AnyBackboneConfig) -> Cost:
    """Count the convolutions, the projection to the layers' width and the positional convolution; or Conformer spectra.

    A convolution is counted by its outputs per frame, times T; the few more at the ends of the recording are left out.
    A Fourier transform of N samples counts as N log2 N. Whisper's window is computed whatever is in it.
    """
    if isinstance(config, ConformerConfig):
        spectrum = config.fft_size * math.log2(config.fft_size) + (config.fft_size // 2 + 1) * config.num_mels
        convolutions = 3 * config.width * (2 * config.num_mels + config.width)
        return 0.0, MELS_BETWEEN_FRAMES * spectrum + convolutions, 0.0
    if isinstance(config, WhisperConfig):
        spectrum = FFT_SIZE * math.log2(FFT_SIZE) + (FFT_SIZE // 2 + 1) * config.num_mels
        convolutions = 3 * config.width * (2 * config.num_mels + config.width)
        return config.window_frames * (2 * spectrum + convolutions), 0.0, 0.0
    channels, macs, outputs = 1, 0.0, config.frame_hop
    for width, kernel, stride in config.conv_layers:
        outputs //= stride
        macs += outputs * kernel * channels * width
        channels = width
    macs += channels * config.width
    macs += (config.pos_stack or 1) * config.pos_kernel * config.width * config.width / config.pos_groups
    return 0.0, macs, 0.0


def count_layer_macs(config: AnyBackboneConfig, heads: AnyHeadsConfig | None = None, score_stride: int = 1) -> Cost:
    """Count one layer (projections, attention over all frames, feed-forward, convolution) and its classifier.

    If not every layer has an exit or a half-rate layer, their cost is spread evenly over all layers.
    """
    per_frame = 4.0 * config.width**2 + 2.0 * config.width * config.ffn_width
    per_pair = 2.0 * config.width
    if isinstance(config, ConformerConfig):
        per_frame += 2 * config.width * config.ffn_width + 3 * config.width**2 + config.kernel * config.width
        share = len(config.split_blocks) / config.num_layers
        per_frame, per_pair = per_frame * (1 + share / 2), per_pair * (1 + share / 4)
    if isinstance(heads, HeadsConfig):
        per_frame += heads.width * heads.num_units / score_stride
    elif heads is not None:
        attentive = sum(heads.has_attention(layer) for layer in heads.layers)
        projections = 4 * heads.width * heads.inner_width
        classifiers = len(heads.layers) * heads.width * heads.num_tokens / score_stride
        per_frame += (classifiers + attentive * projections) / heads.num_layers
        per_pair += attentive * 2 * heads.inner_width / heads.num_layers
    if isinstance(config, WhisperConfig):  # heads read the utterance's frames only
        of_layer = 4.0 * config.width**2 + 2.0 * config.width * config.ffn_width
        window = config.window_frames
        return window * of_layer + window**2 * 2.0 * config.width, per_frame - of_layer, per_pair - 2.0 * config.width
    return 0.0, per_frame, per_pair


def make_macs_deadline(
    backbone: AnyBackbone,
    heads: AnyHeads | None,
    budget: float,
    then: Policy | None = None,
    score_stride: int = 1,
    exits: Sequence[int] | None = None,
) -> Deadline:
    """Make a policy with a budget of multiply-accumulates for each utterance.

    Args:
        backbone: backbone that runs.
        heads: exit heads of the encoder; they cost nothing if ``then`` reads none of their scores.
        budget: multiply-accumulates, front end included.
        then: another rule, by which utterances may leave earlier.
        score_stride: score stride of the encoder.
        exits: exits of the encoder, if not all of the heads', or without heads not all layers.

    Returns:
        The policy.

    Example:
        >>> import daisy, torch
        >>> model = daisy.load("daisy-mini")
        >>> deadline = daisy.calibration.make_macs_deadline(model.backbone, model.heads, budget=1e9)
        >>> encoder = model.encoder(deadline)
        >>> encoder([torch.zeros(16000), torch.zeros(32000)]).exit_layer.tolist()  # twice as long, fewer layers
        [12, 7]
    """
    then = then or Never()
    read = heads.config if heads and then.reads - WITHOUT_HEADS else None
    return Deadline(
        budget=budget,
        front_cost=count_front_end_macs(backbone.config),
        layer_cost=count_layer_macs(backbone.config, read, score_stride),
        then=then,
        layers=_name_layers(backbone, heads, exits),
    )


def make_measured_deadline(
    backbone: AnyBackbone,
    heads: AnyHeads | None,
    budget_ms: float,
    then: Policy | None = None,
    score_stride: int = 1,
    repeats: int = 5,
    dtype: Precision = "float32",
    exits: Sequence[int] | None = None,
) -> Deadline:
    """Make a policy with a budget of milliseconds for each utterance, from times measured on this machine.

    Utterances are timed one by one.

    Args:
        backbone: backbone that runs.
        heads: exit heads of the encoder.
        budget_ms: milliseconds, front end included.
        then: another rule, by which utterances may leave earlier.
        score_stride: score stride of the encoder.
        repeats: number of repetitions of each measurement, of which the median counts.
        dtype: dtype of the encoder.
        exits: exits of the encoder, if not all of the heads', or without heads not all layers.

    Returns:
        The policy.
    """
    then = then or Never()
    encoder = _make_full_encoder(backbone, heads, then.reads, score_stride, dtype, exits)
    fronts, layers = [], []
    generator = torch.Generator().manual_seed(0)
    for num_frames in TIMED_FRAMES:
        length = backbone.config.frame_span + (num_frames - 1) * backbone.config.frame_hop
        waveform = 0.1 * torch.randn(length, generator=generator)
        runs = [_time_layers(encoder, [waveform]) for _ in range(repeats)]
        fronts.append(1000 * statistics.median(run[0] for run in runs))
        layers.append(1000 * statistics.median((run[-1] - run[0]) / (len(run) - 1) for run in runs))
    return Deadline(
        budget=budget_ms,
        front_cost=_fit_cost(fronts),
        layer_cost=_fit_cost(layers),
        then=then,
        layers=_name_layers(backbone, heads, exits),
    )


def _name_layers(backbone: AnyBackbone, heads: AnyHeads | None, exits: Sequence[int] | None = None) -> tuple[int, ...]:
    """Return the exits' layers, or nothing if every layer has one."""
    layers = tuple(exits) if exits is not None else heads.config.layers if heads else ()
    return layers if len(layers) < backbone.config.num_layers else ()


def measure_layer_seconds(
    backbone: AnyBackbone,
    heads: AnyHeads | None,
    waveforms: Sequence[Tensor],
    scores: Iterable[str],
    score_stride: int = 1,
    repeats: int = 3,
    exits: Sequence[int] | None = None,
) -> Tensor:
    """Time the front end and the layers up to each exit, with their scores, one utterance at a time.

    Args:
        backbone: backbone that runs.
        heads: exit heads, if ``scores`` names any of theirs.
        waveforms: (N_b,) each.
        scores: scores to compute at each layer.
        score_stride: score stride of the encoder.
        repeats: number of repetitions, of which the median counts, so that other work on the machine hardly shows.
        exits: exits of the encoder, if not all of the heads'.

    Returns:
        (E,) seconds, summed over the utterances; (L,) if every layer has an exit.
    """
    encoder = _make_full_encoder(backbone, heads, scores, score_stride, "float32", exits)
    runs = []
    for _ in range(repeats):
        times_by_layer = _time_layers(encoder, waveforms)
        runs.append([times_by_layer[layer] for layer in encoder.exits])
    return torch.tensor([statistics.median(times) for times in zip(*runs, strict=True)])


def _make_full_encoder(
    backbone: AnyBackbone,
    heads: AnyHeads | None,
    scores: Iterable[str],
    score_stride: int,
    dtype: Precision,
    exits: Sequence[int] | None,
) -> EarlyExitEncoder:
    """Make an encoder that runs all layers and computes scores, except the draw, which is made once per batch."""
    names = set(scores) - {"draw"}
    return EarlyExitEncoder(
        backbone, heads, Never(), keep="last", scores=names, score_stride=score_stride, dtype=dtype, exits=exits
    )


def _time_layers(encoder: EarlyExitEncoder, waveforms: Sequence[Tensor]) -> list[float]:
    """Return the seconds until the front end, and each layer with its scores, were done, summed over the utterances."""
    device = encoder.backbone.device
    sums = [0.0] * (encoder.backbone.config.num_layers + 1)
    for waveform in waveforms:
        waveform = waveform.to(device)
        for _ in range(3 if device.type == "cuda" else 0):
            encoder([waveform])  # until everything that is captured has been captured
        sums = [sum(pair) for pair in zip(sums, _time_utterance(encoder, waveform), strict=True)]
    return sums


def _time_utterance(encoder: EarlyExitEncoder, waveform: Tensor) -> list[float]:
    """Return the seconds until the front end, and each layer, were done."""
    is_cuda = waveform.device.type == "cuda"
    seconds: list[float] = []

    def note(layer: int) -> None:
        if is_cuda:
            torch.cuda.synchronize(waveform.device)
        seconds.append(time.perf_counter() - start)

    start = time.perf_counter()
    encoder([waveform], on_layer=note)
    return seconds


def _fit_cost(times: list[float]) -> Cost:
    """Fit non-negative (c0, c1, c2) to times at `TIMED_FRAMES`, with the least relative error."""
    from scipy.optimize import nnls

    frames = numpy.array(TIMED_FRAMES, dtype=float)
    powers = numpy.stack([numpy.ones_like(frames), frames, frames**2], axis=1)
    measured = numpy.array(times)
    c0, c1, c2 = nnls(powers / measured[:, None], numpy.ones_like(measured))[0].tolist()
    return c0, c1, c2
