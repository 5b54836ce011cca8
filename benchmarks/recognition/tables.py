"""Tables of docs/results/recognition.md, from results/early_exit_asr{,_policies,_scores,_guarantee}.json."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.recognition.policies import ALL_CONDITIONS
from benchmarks.recognition.systems import EXITS
from benchmarks.shared.rendering import render_result
from benchmarks.shared.results import Row, read_result

DEPTH = 0.6
"""Depth at which policies are compared."""
KINDS = {"errors": "with its errors", "saved": "with errors saved"}
"""Fields of early_exit_asr_scores.json, and their headings."""


def render_exits() -> str:
    """Render character error rates at every exit, clean and at 0 dB, of all sets together."""
    result = read_result("early_exit_asr")
    rows = {(row["system"], row["exit_layer"], row["condition"]): row for row in result["rows"] if row["set"] == "all"}
    lines = []
    for system in dict.fromkeys(system for system, _, _ in rows):
        cells = []
        for layer in EXITS:
            pair = [rows.get((system, layer, condition)) for condition in ("clean", "recorded 0 dB")]
            cells.append(" / ".join(f"{row['cer']:.3f}" for row in pair if row is not None))
        size = next(row["parameters"] for key, row in rows.items() if key[0] == system)
        lines.append([system, f"{size / 1e6:.1f} M", *cells])
    header = ["recogniser", "parameters", *(f"exit {layer}: clean / 0 dB" for layer in EXITS)]
    return render_result(result, header, lines)


def render_sets() -> str:
    """Render word and character error rates of the last exit on clean audio, set by set, with intervals."""
    result = read_result("early_exit_asr")
    clean = [row for row in result["rows"] if row["condition"] == "clean"]
    sets = [name for name in dict.fromkeys(row["set"] for row in clean) if name != "all"]
    lines = []
    for system in dict.fromkeys(row["system"] for row in clean):
        of_system = [row for row in clean if row["system"] == system]
        last = max(row["exit_layer"] for row in of_system)
        by_set = {row["set"]: row for row in of_system if row["exit_layer"] == last}
        cells = [_format_errors(by_set[name]) if name in by_set else "" for name in sets]
        lines.append([system, *cells])
    return render_result(result, ["recogniser", *(f"{name}: WER, CER" for name in sets)], lines)


def _format_errors(row: Row) -> str:
    cells = []
    for kind in ("wer", "cer"):
        low, high = (row[f"{kind}_{end}"] for end in ("low", "high"))
        cells.append(f"{row[kind]:.3f}" + ("" if low is None else f" ({low:.3f}-{high:.3f})"))
    return ", ".join(cells)


def render_policies() -> str:
    """Render policies near 60 % of the layers: their depth, time and error, and the static cut's error."""
    result = read_result("early_exit_asr_policies")
    nearest: dict[tuple[str, str], Row] = {}
    for row in result["rows"]:
        key = (row["system"], row["policy"])
        if row["condition"] != ALL_CONDITIONS or row["policy"] == "fixed":  # the static cut stands beside the others
            continue
        if key not in nearest or abs(row["depth"] - DEPTH) < abs(nearest[key]["depth"] - DEPTH):
            nearest[key] = row
    lines = [
        [
            system, policy, f"{row['depth']:.0%}", f"{row['time']:.0%}",
            *(f"{row[f'cer{name}']:.4f}" for name in ("", "_static", "_mixture", "_random", "_static_at_time")),
            *(_format_gain(row, other) for other in ("static", "random")),
        ]
        for (system, policy), row in nearest.items()
    ]  # fmt: skip
    header = [
        "recogniser", "policy", "depth", "time", "CER", "static cut", "best mixture of two cuts", "random exits",
        "static cut in that time", "below the static cut by", "below random exits by",
    ]  # fmt: skip
    return render_result(result, header, lines)


def _format_gain(row: Row, other: str) -> str:
    gain, low, high = (row[f"cer_over_{other}{end}"] for end in ("", "_low", "_high"))
    return f"{gain:+.4f} ({low:+.4f} to {high:+.4f})"


def render_scores() -> str:
    """Render what scores go with: the errors at an exit, and the errors that the last exit saves."""
    result = read_result("early_exit_asr_scores")
    rows = {(row["system"], row["score"], row["exit_layer"]): row for row in result["rows"]}
    layers = sorted({layer for *_, layer in rows})
    lines = [
        [system, score, *(_format_correlation(rows[system, score, layer], kind) for layer in layers for kind in KINDS)]
        for system, score in dict.fromkeys((system, score) for system, score, _ in rows)
    ]
    header = ["recogniser", "score", *(f"exit {layer}: {what}" for layer in layers for what in KINDS.values())]
    return render_result(result, header, lines)


def _format_correlation(row: Row, kind: str) -> str:
    return f"{row[kind]:+.2f} ({row[f'{kind}_low']:+.2f} to {row[f'{kind}_high']:+.2f})"


def render_guarantee() -> str:
    """Render how often certified risks were exceeded, and the depth that remains.

    Of the targets that so few speakers cannot certify, the table has the strictest alone.
    """
    result = read_result("early_exit_asr_guarantee")
    strictest = min(row["target"] for row in result["rows"])
    fields = ("violations", "mean_test_risk", "depth", "none_certified")
    lines = [
        [
            row["system"], row["risk_name"], str(row["certifying"]),
            *(f"{row[name]:.2f}" for name in ("least_target", "target")), *(f"{row[name]:.3f}" for name in fields),
        ]
        for row in result["rows"]
        if row["target"] == strictest or row["target"] >= row["least_target"]
    ]  # fmt: skip
    header = [
        "recogniser", "risk", "speakers that certify", "least target they can", "target", "violations",
        "mean test risk", "depth", "none certified",
    ]  # fmt: skip
    return render_result(result, header, lines)


TABLES: dict[str, Callable[[], str]] = {
    "asr_exits": render_exits,
    "asr_sets": render_sets,
    "asr_policies": render_policies,
    "asr_scores": render_scores,
    "asr_guarantee": render_guarantee,
}
