"""Tables and a sentence about speed, from latency, backbones, speed, memory and s3prl_cache of results/."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.shared.rendering import format_ratio, format_significant, render_result, render_source, render_table
from benchmarks.shared.results import Result, Row, read_result
from benchmarks.speed.measures import BACKBONE_SETTING, SETTING, group_by_setting
from daisy.errors import UsageError

EXIT_CHANGES = ("same exit, within a layer", "largest change of entropy, of regressed loss: nats")


def render_latency(name: str = "latency", fields: Sequence[str] = SETTING) -> str:
    """Render each setting, defined by these fields: our milliseconds, and every peer's time over ours."""
    result = read_result(name)
    ours, *peers = dict.fromkeys(row["system"] for row in result["rows"])
    lines = []
    for setting, by_system in group_by_setting(result["rows"], fields).items():
        audio_sec, seconds = by_system[ours]["audio_sec"], by_system[ours]["seconds"]
        cells = [_format_peer(by_system[peer]) if peer in by_system else "" for peer in peers]
        lines.append([*map(str, setting), f"{audio_sec:.0f}", format_significant(1000 * seconds), *cells])
    return render_result(result, [*fields, "audio, s", "ours, ms", *peers], lines, threads=False)


def _format_peer(row: Row) -> str:
    """Format a peer's ratio, and the form that it ran in if it had two."""
    return format_ratio(row) + (f", {row['form']}" if row["form"] != row["precision"] else "")


def render_latency_range(name: str = "latency") -> str:
    """Render every peer's time over ours: least and greatest median over sizes, precisions and numbers of threads."""
    result = read_result(name)
    _ours, *peers = dict.fromkeys(row["system"] for row in result["rows"])
    ratios: dict[tuple[int, str, str], list[float]] = {}
    for row in result["rows"]:
        ratios.setdefault((row["batch"], row["lengths"], row["system"]), []).append(row["ratio"])
    lines = []
    for batch, lengths in dict.fromkeys(key[:2] for key in ratios):
        of_peers = [ratios[batch, lengths, peer] for peer in peers]
        cells = [f"{min(values):.2f} to {max(values):.2f}" for values in of_peers]
        lines.append([f"{batch} of {'10 s' if lengths == 'fixed' else 'mixed lengths'}", *cells])
    return render_result(result, ["recordings in a batch", *peers], lines, threads=False)


def render_latency_sentence() -> str:
    """Say in which settings, on CPUs and on a GPU, a peer is faster."""
    settings, slower = 0, []
    for name, device in (("latency", "two cores"), ("latency_cuda", "a GPU")):
        for setting, by_system in group_by_setting(read_result(name)["rows"], SETTING).items():
            settings += 1
            others = [system for system, row in by_system.items() if row["ratio"] < 1]
            if others:
                size, precision, batch, lengths, _threads = setting
                where = f"{size} in {precision}, a batch of {batch} of {lengths} lengths, {device}"
                slower.append(f"{' and '.join(others)} ({where})")
    told = (
        f"In {len(slower)} of them somebody else is faster: {'; '.join(slower)}" if slower else "We are fastest in all"
    )
    return f"These are {settings} settings on two cores and on a GPU. {told}.\n"


def read_measure(measure: str, name: str) -> tuple[Result, list[Row]]:
    """Read results/NAME.json, and the rows of one measurement.

    Raises:
        UsageError: if it has none.
    """
    result = read_result(name)
    rows = [row for row in result["rows"] if row["measure"] == measure]
    if not rows:
        command = f"python -m benchmarks.speed.speed --only {measure}"
        raise UsageError(f"results/{name}.json has no rows of {measure}: {command}")
    return result, rows


def render_precision(name: str = "speed") -> str:
    """Render time, states and exits of lower precisions against float32."""
    result, rows = read_measure("precision", name)
    lines = []
    for row in rows:
        drifts = [f"{row[f'{score}_drift']:.1e}" for score in ("entropy", "regressed") if f"{score}_drift" in row]
        states = f"{row['cosine']:.5f}, {row['least_cosine']:.5f}"
        counts = f"{row['num_timed']}, {row['num_utterances']}"
        times = format_ratio(row, "faster")
        lines.append([row["size"], row["precision"], times, states, _format_exits(row), ", ".join(drifts), counts])
    header = ["size", "precision", "times as fast as float32", "cosine: mean, least", *EXIT_CHANGES]
    return render_result(result, [*header, "recordings timed, compared"], lines)


def _format_exits(row: Row) -> str:
    return f"{row['same_exit']:.1%}, {row['within_one_layer']:.1%}" if "same_exit" in row else ""


def render_deciding(name: str = "speed") -> str:
    """Render the time with scores at every layer over that without heads."""
    result, rows = read_measure("deciding", name)
    cells = {
        (row["precision"], row["scores"]): [format_significant(1000 * row["seconds"]), format_ratio(row, digits=3)]
        for row in rows
    }
    precisions, scores = ([*dict.fromkeys(column)] for column in zip(*cells, strict=True))
    lines = [[kind, *(cell for precision in precisions for cell in cells[precision, kind])] for kind in scores]
    times = [title for precision in precisions for title in (f"{precision}, ms", "time over none's")]
    return render_result(result, ["scores", *times], lines)


def render_stride(name: str = "speed") -> str:
    """Render time, depth, units and exits by the share of frames that the heads read."""
    result, rows = read_measure("stride", name)
    lines = []
    for row in rows:
        drift = f"{row['entropy_drift']:.2f}, {row['regressed_drift']:.2f}" if "same_exit" in row else ""
        every = "every frame" if row["every"] == 1 else f"one of {row['every']}"
        shares = [f"{row['depth']:.1%}", f"{row['unit_agreement']:.3f}"]
        lines.append([every, format_ratio(row), *shares, _format_exits(row), drift])
    times = ["the heads look at", "time over that with every frame"]
    header = [*times, "layers run", "units of the full model", *EXIT_CHANGES]
    counts = f"\n{rows[0]['num_utterances']} recordings, {rows[0]['num_timed']} of them timed."
    return render_table(header, lines) + counts + render_source(result)


def render_mixed(name: str = "speed") -> str:
    """Render exits spread over a batch against the ideal, and against one exit for all."""
    result, rows = read_measure("mixed", name)
    lines = [
        [
            row["size"], str(row["batch"]), f"{row['audio_sec']:.0f}", f"{row['mean_layers']:.2f}",
            format_significant(row["seconds"]), format_ratio(row, "over_ideal"),
            f"{row['over_one_exit']:.2f} at {row['one_exit_layer']}",
        ]
        for row in rows
    ]  # fmt: skip
    header = ["size", "recordings", "audio, s", "layers", "seconds", "over the ideal", "over one exit for all"]
    return render_result(result, header, lines)


def render_stages(name: str = "speed") -> str:
    """Render front end and layers, before and after."""
    result, rows = read_measure("stages", name)
    lines = [
        [
            row["size"], row["precision"], row["stage"], f"{row['seconds']:.3f}", format_ratio(row, "faster"),
            f"{row['share_before']:.2f}", f"{row['share']:.2f}",
            f"{row['macs_per_sec'] / 1e9:.0f}", f"{row['of_product']:.2f}",
        ]
        for row in rows
    ]  # fmt: skip
    header = [
        "size", "precision", "stage", "seconds", "times as fast as the plain modules",
        "share of the whole with those", "with ours", "10⁹ MACs a second", "of the matrix product's rate",
    ]  # fmt: skip
    return render_result(result, header, lines)


def render_shapes(name: str = "speed") -> str:
    """Render recordings of many lengths: products with their own shapes over those with shared shapes."""
    result, rows = read_measure("shapes", name)
    lines = [[row["precision"], str(row["lengths"]), format_ratio(row)] for row in rows]
    return render_result(result, ["precision", "lengths", "time with own shapes over shared ones"], lines)


def render_end_to_end(name: str = "speed") -> str:
    """Render the test recordings from waveforms to states."""
    result, rows = read_measure("end-to-end", name)
    lines = [
        [
            row["recordings"], row["batches"], row["system"], f"{row['seconds']:.1f}", format_ratio(row),
            f"{row['depth']:.0%}", f"{row['unit_agreement']:.3f}" if row["unit_agreement"] is not None else "",
        ]
        for row in rows
    ]  # fmt: skip
    sizes = {(row["num_utterances"], row["audio_sec"]) for row in rows}
    counts = " and ".join(f"{count} recordings, {seconds:.0f} s" for count, seconds in sorted(sizes))
    times = ["seconds", "over the policy's time", "layers run"]
    header = ["recordings", "batches", "system", *times, "units of the full model"]
    return render_table(header, lines) + f"\n{counts}." + render_source(result)


def render_growth(measure: str, key: str, title: str) -> str:
    """Render seconds and memory by a size, with the log-log slope of each from the row before."""
    result, rows = read_measure(measure, "memory")
    lines = []
    for mode in dict.fromkeys(row.get("mode", "") for row in rows):
        of_mode = [row for row in rows if row.get("mode", "") == mode]
        for before, row in zip([None, *of_mode], of_mode, strict=False):
            slopes = [_format_slope(before, row, key, field) for field in ("seconds", "peak_bytes")]
            peak, above = (count / 2**20 for count in (row["peak_bytes"], row["peak_bytes"] - row["before_bytes"]))
            cells = [str(row[key]), f"{row['seconds']:.2f}", slopes[0], f"{peak:.0f}", slopes[1], f"{above:.0f}"]
            lines.append([mode, *cells] if mode else cells)
    header = [title, "seconds", "slope", "peak, MiB", "slope", "of it above the loaded model, MiB"]
    return render_result(result, [*(["how"] if "mode" in rows[0] else []), *header], lines)


def _format_slope(before: Row | None, row: Row, key: str, field: str) -> str:
    if before is None:
        return ""
    slope = math.log(row[field] / before[field]) / math.log(row[key] / before[key])
    return f"{round(slope, 2) + 0.0:.2f}"  # no -0.00


def render_s3prl_cache() -> str:
    """Render the savings from the cache of the s3prl upstream."""
    result = read_result("s3prl_cache")
    lines = [
        [
            row["cache"], f"{row['upstream_sec']:.1f}", f"{row['training_sec']:.0f}",
            f"{row['cache_bytes'] / 2**20:.0f}",
            f"{row['largest_weight_difference']:.0e}" if row["largest_weight_difference"] else "0",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    header = ["cache", "upstream, s", "training, s", "disk, MiB", "largest difference of a trained weight"]
    return render_result(result, header, lines)


TABLES: dict[str, Callable[[], str]] = {
    "latency": render_latency,
    "latency_range": render_latency_range,
    "latency_sentence": render_latency_sentence,
    "backbones": partial(render_latency, "backbones", BACKBONE_SETTING),
    "precision": render_precision,
    "deciding": render_deciding,
    "stride": render_stride,
    "mixed": render_mixed,
    "stages": render_stages,
    "shapes": render_shapes,
    "end_to_end": render_end_to_end,
    "latency_range_epyc": partial(render_latency_range, "latency_epyc"),
    "precision_xeon": partial(render_precision, "speed_xeon"),
    "latency_cuda": partial(render_latency, "latency_cuda"),
    "latency_range_cuda": partial(render_latency_range, "latency_cuda"),
    "precision_cuda": partial(render_precision, "speed_cuda"),
    "deciding_cuda": partial(render_deciding, "speed_cuda"),
    "mixed_cuda": partial(render_mixed, "speed_cuda"),
    "memory_utterances": partial(render_growth, "utterances", "num_utterances", "recordings"),
    "memory_length": partial(render_growth, "length", "audio_sec", "audio, s"),
    "s3prl_cache": render_s3prl_cache,
}
