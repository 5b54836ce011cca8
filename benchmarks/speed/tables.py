"""Tables of docs/speed.md, from results/latency.json, speed.json, memory.json, and what a GPU gave."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from common import read
from rendering import SETTING, by_setting, ratio, source, table

from daisy.errors import DaisyError


def latency(name: str = "latency") -> str:
    """Each setting: our milliseconds, and every peer's time over ours."""
    result = read(name)
    ours, *names = dict.fromkeys(row["system"] for row in result["rows"])
    lines = []
    for setting, found in by_setting(result["rows"]).items():
        audio_sec = found[ours]["audio_sec"]
        cells = [_against(found[name]) if name in found else "" for name in names]
        lines.append([*map(str, setting), f"{audio_sec:.0f}", f"{1000 * found[ours]['seconds']:.3g}", *cells])
    return table([*SETTING, "audio, s", "ours, ms", *names], lines) + source(result, threads=False)


def latency_range(name: str = "latency") -> str:
    """Every peer's time over ours: least and greatest median of the sizes, precisions and numbers of threads."""
    result = read(name)
    names = list(dict.fromkeys(row["system"] for row in result["rows"]))[1:]
    lines = []
    for batch, lengths in dict.fromkeys((row["batch"], row["lengths"]) for row in result["rows"]):
        cells = []
        for name in names:
            ratios = [
                row["ratio"]
                for row in result["rows"]
                if (row["batch"], row["lengths"], row["system"]) == (batch, lengths, name)
            ]
            cells.append(f"{min(ratios):.2f} to {max(ratios):.2f}")
        lines.append([f"{batch} of {'10 s' if lengths == 'fixed' else 'mixed lengths'}", *cells])
    return table(["recordings in a batch", *names], lines) + source(result, threads=False)


def _against(row: dict) -> str:
    """A peer's ratio, and which of two forms it ran in."""
    return ratio(row) + (f", {row['form']}" if row["form"] != row["precision"] else "")


def measured(measure: str, name: str) -> tuple[dict, list[dict]]:
    """results/NAME.json, and its rows of one measure.

    Raises:
        DaisyError: where it has none.
    """
    result = read(name)
    rows = [row for row in result["rows"] if row["measure"] == measure]
    if not rows:
        raise DaisyError(f"results/{name}.json has no rows of {measure}: python benchmarks/speed.py --only {measure}")
    return result, rows


def precision(name: str = "speed") -> str:
    """Time, states and exits of fewer bits against float32."""
    result, rows = measured("precision", name)
    lines = []
    for row in rows:
        exits = f"{row['same_exit']:.1%}, {row['within_one_layer']:.1%}" if "same_exit" in row else ""
        drift = ", ".join(f"{row[f'{name}_drift']:.1e}" for name in ("entropy", "regressed") if f"{name}_drift" in row)
        states = f"{row['cosine']:.5f}, {row['least_cosine']:.5f}"
        lines.append(
            [
                row["size"],
                row["precision"],
                ratio(row, "faster"),
                states,
                exits,
                drift,
                f"{row['num_timed']}, {row['num_utterances']}",
            ]
        )
    header = [
        "size",
        "precision",
        "times as fast as float32",
        "cosine: mean, least",
        "same exit, within a layer",
        "largest change of entropy, of regressed loss: nats",
        "recordings timed, compared",
    ]
    return table(header, lines) + source(result)


def deciding(name: str = "speed") -> str:
    """Time with scores at every layer over time without heads."""
    result, rows = measured("deciding", name)
    cells = {(row["precision"], row["scores"]): [f"{1000 * row['seconds']:.3g}", ratio(row, digits=3)] for row in rows}
    precisions, kinds = ([*dict.fromkeys(of)] for of in zip(*cells, strict=True))
    lines = [[kind, *(cell for precision in precisions for cell in cells[precision, kind])] for kind in kinds]
    times = [title for precision in precisions for title in (f"{precision}, ms", "time over none's")]
    return table(["scores", *times], lines) + source(result)


def stride(name: str = "speed") -> str:
    """Time, depth, units and exits by how many frames the heads look at."""
    result, rows = measured("stride", name)
    lines = []
    for row in rows:
        exits, drift = "", ""
        if "same_exit" in row:
            exits = f"{row['same_exit']:.1%}, {row['within_one_layer']:.1%}"
            drift = f"{row['entropy_drift']:.2f}, {row['regressed_drift']:.2f}"
        every = "every frame" if row["every"] == 1 else f"one of {row['every']}"
        shares = [f"{row['depth']:.1%}", f"{row['unit_agreement']:.3f}"]
        lines.append([every, ratio(row), *shares, exits, drift])
    header = [
        "the heads look at",
        "time over that with every frame",
        "layers run",
        "units of the full model",
        "same exit, within a layer",
        "largest change of entropy, of regressed loss: nats",
    ]
    counts = f"\n{rows[0]['num_utterances']} recordings, {rows[0]['num_timed']} of them timed."
    return table(header, lines) + counts + source(result)


def mixed(name: str = "speed") -> str:
    """Exits spread over a batch against the ideal, and against one exit for all."""
    result, rows = measured("mixed", name)
    lines = [
        [
            row["size"], str(row["batch"]), f"{row['audio_sec']:.0f}", f"{row['mean_layers']:.2f}",
            f"{row['seconds']:.3g}", ratio(row, "over_ideal"), f"{row['over_one_exit']:.2f} at {row['one_exit_layer']}",
        ]
        for row in rows
    ]  # fmt: skip
    header = ["size", "recordings", "audio, s", "layers", "seconds", "over the ideal", "over one exit for all"]
    return table(header, lines) + source(result)


def stages(name: str = "speed") -> str:
    """Front end and layers, before and after."""
    result, rows = measured("stages", name)
    lines = [
        [
            row["size"], row["precision"], row["stage"], f"{row['seconds']:.3f}", ratio(row, "faster"),
            f"{row['share_before']:.2f}", f"{row['share']:.2f}",
            f"{row['macs_per_sec'] / 1e9:.0f}", f"{row['of_product']:.2f}",
        ]
        for row in rows
    ]  # fmt: skip
    header = [
        "size", "precision", "stage", "seconds", "times as fast as torchaudio's modules",
        "share of the whole with those", "with ours", "10⁹ MACs a second", "of the matrix product's rate",
    ]  # fmt: skip
    return table(header, lines) + source(result)


def shapes(name: str = "speed") -> str:
    """Recordings of many lengths, products of their own shapes over shared ones."""
    result, rows = measured("shapes", name)
    lines = [[row["precision"], str(row["lengths"]), ratio(row)] for row in rows]
    return table(["precision", "lengths", "time with own shapes over shared ones"], lines) + source(result)


def end_to_end(name: str = "speed") -> str:
    """The test recordings from waveforms to states."""
    result, rows = measured("end-to-end", name)
    lines = [
        [
            row["recordings"], row["batches"], row["system"], f"{row['seconds']:.1f}", ratio(row),
            f"{row['depth']:.0%}", f"{row['unit_agreement']:.3f}" if row["unit_agreement"] is not None else "",
        ]
        for row in rows
    ]  # fmt: skip
    sizes = {(row["num_utterances"], row["audio_sec"]) for row in rows}
    said = " and ".join(f"{count} recordings, {seconds:.0f} s" for count, seconds in sorted(sizes))
    times = ["seconds", "over the policy's time", "layers run"]
    header = ["recordings", "batches", "system", *times, "units of the full model"]
    return table(header, lines) + f"\n{said}." + source(result)


def growth(measure: str, key: str, title: str) -> Callable[[], str]:
    """Seconds and memory by a size, with the slope of each from the row before on logarithmic scales."""

    def made() -> str:
        result = read("memory")
        rows = [row for row in result["rows"] if row["measure"] == measure]
        lines = []
        for mode in dict.fromkeys(row.get("mode", "") for row in rows):
            mine = [row for row in rows if row.get("mode", "") == mode]
            for before, row in zip([None, *mine], mine, strict=False):
                time, memory = (_slope(before, row, key, what) if before else "" for what in ("seconds", "peak_bytes"))
                peak, own = (count / 2**20 for count in (row["peak_bytes"], row["peak_bytes"] - row["before_bytes"]))
                cells = [str(row[key]), f"{row['seconds']:.2f}", time, f"{peak:.0f}", memory, f"{own:.0f}"]
                lines.append([mode, *cells] if mode else cells)
        header = [title, "seconds", "slope", "peak, MiB", "slope", "of it above the loaded model, MiB"]
        return table([*(["how"] if "mode" in rows[0] else []), *header], lines) + source(result)

    return made


def _slope(before: dict, row: dict, key: str, what: str) -> str:
    slope = math.log(row[what] / before[what]) / math.log(row[key] / before[key])
    return f"{round(slope, 2) + 0.0:.2f}"  # no -0.00


TABLES: dict[str, Callable[[], str]] = {
    "latency": latency,
    "latency_range": latency_range,
    "precision": precision,
    "deciding": deciding,
    "stride": stride,
    "mixed": mixed,
    "stages": stages,
    "shapes": shapes,
    "end_to_end": end_to_end,
    "latency_range_epyc": partial(latency_range, "latency_epyc"),
    "precision_epyc": partial(precision, "speed_epyc"),
    **{f"{made.__name__}_cuda": partial(made, "latency_cuda") for made in (latency, latency_range)},
    **{f"{made.__name__}_cuda": partial(made, "speed_cuda") for made in (precision, deciding, mixed)},
    "memory_utterances": growth("utterances", "num_utterances", "recordings"),
    "memory_length": growth("length", "audio_sec", "audio, s"),
}
