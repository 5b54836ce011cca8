"""What approximations change, measured by speed.py: fewer bits, and heads that look at fewer frames."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import paired
from latency import backbone_of
from measures import DTYPES, over, ratio_of, repeated, row, spoken
from torch import Tensor
from torch.nn import functional as F

import daisy
from daisy.cli.console import DEFAULT_POLICY
from daisy.encoder import EarlyExitEncoder, ExitOutput
from daisy.policies import Never

DRIFTING = ("entropy", "regressed")
"""Scores whose change is measured, in nats."""


def precision(quick: bool, device: str) -> list[dict]:
    """Fewer bits against float32, on real recordings one by one; Base has random weights."""
    rows = []
    model = daisy.load("daisy-mini", device=device)
    for size in ("mini", "base"):
        backbone = backbone_of(size).to(device)
        waveforms = spoken(2 if quick or size == "base" else 100 if device == "cpu" else 20, device)
        timed = waveforms[: 4 if quick else 24 if size == "mini" else 6]
        dtypes = DTYPES if device == "cpu" else DTYPES[:2]
        full = {dtype: EarlyExitEncoder(backbone, None, Never(), dtype=dtype) for dtype in dtypes}
        calls = {dtype: over(encoder, [[each] for each in timed]) for dtype, encoder in full.items()}
        times = paired.turns(calls, repeated(3 if quick else 7, device))
        exact = leaving(model, waveforms) if size == "mini" else []
        for dtype in dtypes[1:]:
            cosines = [cosine(full["float32"]([w]).states[0], full[dtype]([w]).states[0]) for w in waveforms]
            found = {"cosine": statistics.mean(cosines), "least_cosine": min(cosines)}
            found |= {"num_utterances": len(waveforms), "num_timed": len(timed)}
            if exact:
                found |= decisions_apart(exact, leaving(model, waveforms, dtype=dtype))
            middle, low, high = times["float32"].over(times[dtype])
            speed = {"seconds": times[dtype].median, "faster": middle, "faster_low": low, "faster_high": high}
            rows.append(row("precision", size=size, precision=dtype, **speed, **found))
    return rows


def stride(quick: bool, device: str) -> list[dict]:
    """The default policy on scores of every n-th frame, real recordings one by one."""
    model = daisy.load("daisy-mini", device=device)
    waveforms = spoken(2 if quick else 100 if device == "cpu" else 20, device)
    timed = waveforms[: 4 if quick else 24]
    policy = model.policy(DEFAULT_POLICY)
    encoders = {every: EarlyExitEncoder(model.backbone, model.heads, policy, score_stride=every) for every in (1, 2, 4)}
    calls = {str(every): over(encoder, [[each] for each in timed]) for every, encoder in encoders.items()}
    times = paired.turns(calls, repeated(3 if quick else 15, device))
    whole, exact = entire(model, waveforms), leaving(model, waveforms)
    rows = []
    for every in encoders:
        found = exact if every == 1 else leaving(model, waveforms, every=every)
        depth, agreement = fidelity(model, found, whole)
        changes = {} if every == 1 else decisions_apart(exact, found)
        counts = {"num_utterances": len(waveforms), "num_timed": len(timed)}
        shares = {"depth": depth, "unit_agreement": agreement}
        rows.append(
            row("stride", size="mini", every=every, **counts, **ratio_of(times, str(every), "1"), **shares, **changes)
        )
    return rows


def leaving(
    model: daisy.Model, waveforms: Sequence[Tensor], dtype: str = "float32", every: int = 1
) -> list[ExitOutput]:
    """Each recording with the default policy, exit layers only, with the scores whose change is measured."""
    policy = model.policy(DEFAULT_POLICY)
    settings = {"dtype": dtype, "score_stride": every, "keep": "last"}
    encoder = EarlyExitEncoder(model.backbone, model.heads, policy, scores=DRIFTING, **settings)
    return [encoder([waveform]) for waveform in waveforms]


def entire(model: daisy.Model, waveforms: Sequence[Tensor]) -> list[ExitOutput]:
    """The last layer of each recording."""
    encoder = EarlyExitEncoder(model.backbone, None, Never(), keep="last")
    return [encoder([waveform]) for waveform in waveforms]


def cosine(one: Tensor, other: Tensor) -> float:
    """Mean over layers and frames."""
    return float(F.cosine_similarity(one, other.float(), dim=-1).mean())


def decisions_apart(exact: Sequence[ExitOutput], approximate: Sequence[ExitOutput]) -> dict[str, object]:
    """What an approximation changes in the default policy's exits, and in the scores of layers that both ran."""
    pairs = list(zip(exact, approximate, strict=True))
    apart = [abs(int(one.exit_layer) - int(other.exit_layer)) for one, other in pairs]
    drift = {
        f"{name}_drift": max(float((a.scores[name] - b.scores[name]).abs().nan_to_num(0.0).max()) for a, b in pairs)
        for name in DRIFTING
    }
    return {
        "policy": DEFAULT_POLICY,
        "same_exit": statistics.mean(each == 0 for each in apart),
        "within_one_layer": statistics.mean(each <= 1 for each in apart),
        **drift,
    }


def fidelity(model: daisy.Model, found: Sequence[ExitOutput], whole: Sequence[ExitOutput]) -> tuple[float, float]:
    """Mean share of the layers that ran, and of frames whose unit at the exit is the whole network's."""
    assert model.final_head is not None
    assert model.heads is not None
    depths, agreements = [], []
    for out, full in zip(found, whole, strict=True):
        layer = int(out.exit_layer)
        units = model.heads.unit_logits(layer, out.states[0][-1]).argmax(-1)
        agreements.append(float((units == model.final_head(full.states[0][-1]).argmax(-1)).float().mean()))
        depths.append(layer / model.backbone.config.num_layers)
    return statistics.mean(depths), statistics.mean(agreements)
