"""Tables about several processes and machines: distributed_extraction.json and mdi.json."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.shared.rendering import render_result
from benchmarks.shared.results import Result, Row, read_result


def _read(name: str, part: str) -> tuple[Result, list[Row]]:
    """Read a result, and its rows of a part."""
    result = read_result(name)
    return result, [row for row in result["rows"] if part in (row.get("measure"), row.get("part"))]


def render_speed() -> str:
    """Render seconds and audio hours an hour of both engines."""
    result, rows = _read("distributed_extraction", "speed")
    lines = [
        [
            row["engine"],
            str(row["workers"]),
            f"{row['start_sec']:.1f}",
            f"{row['busy_sec']:.1f}",
            f"{row['overhead']:+.0%}",
            f"{row['audio_hours_per_hour']:.0f}",
        ]
        for row in rows
    ]
    header = ["engine", "workers", "start (s)", "seconds from then on", "beside local", "audio hours an hour"]
    return render_result(result, header, lines)


def render_memory() -> str:
    """Render the peak memory of the process that hands out the work."""
    result, rows = _read("distributed_extraction", "memory")
    lines = [[row["engine"], f"{row['num_recordings']:,}", f"{row['peak_bytes'] / 1e9:.2f}"] for row in rows]
    for row in _read("distributed_extraction", "driver")[1]:
        lines.append(["without a model", f"{row['num_recordings']:,}", f"{row['peak_bytes'] / 1e9:.2f}"])
    return render_result(result, ["engine", "recordings", "peak (GB)"], lines)


def render_failures() -> str:
    """Render what was lost and repeated where processes and nodes were killed."""
    result, kills = _read("distributed_extraction", "kills")
    nodes = _read("distributed_extraction", "nodes")[1]
    workers, drivers = (sum(row[name] for row in kills) for name in ("killed_workers", "killed_drivers"))
    lines = [
        [
            f"{workers} workers, {drivers} drivers",
            str(sum(row["lost"] + row["double"] for row in kills)),
            str(sum(row["repeated"] for row in kills)),
        ],
        *(["a node of two", str(row["lost"] + row["double"]), str(row["repeated"])] for row in nodes),
    ]
    return render_result(result, ["killed", "recordings lost or double", "done again"], lines)


def render_throughput() -> str:
    """Render utterances a second and what they keep, at a fixed exit level and an adapting rate."""
    result, rows = _read("mdi", "throughput")
    lines = [
        [
            row["topology"],
            row["system"],
            f"{row['steady_throughput']:.2f}",
            f"{row['simulated_steady_throughput']:.2f}",
            f"{row['fidelity']:.3f}",
            f"{row['median_latency_sec']:.2f}",
            f"{row['megabytes_sent']:.1f}",
        ]
        for row in rows
    ]
    header = ["topology", "system", "utterances/s", "simulated", "fidelity", "median latency (s)", "MB sent"]
    return render_result(result, header, lines)


def render_fidelity() -> str:
    """Render what is kept at one rate, with an adapting exit level."""
    result, rows = _read("mdi", "fidelity")
    lines = [
        [
            row["topology"],
            row["system"],
            f"{row['rate']:.2f}",
            f"{row['throughput']:.2f}",
            f"{row['fidelity']:.3f}",
            f"{row['mean_exit_layer']:.1f}",
            f"{row['median_latency_sec']:.2f}",
        ]
        for row in rows
    ]
    header = ["topology", "system", "come in/s", "answered/s", "fidelity", "mean exit layer", "median latency (s)"]
    return render_result(result, header, lines)


def render_loads() -> str:
    """Render both kinds of admission under a load that doubles and then falls to a quarter."""
    result, rows = _read("mdi", "loads")
    lines = [
        [
            row["admission"],
            f"from {row['begin_sec']:.0f} s",
            f"{row['throughput']:.2f}",
            f"{row['mean_level']:.2f}",
            f"{row['fidelity']:.3f}",
            f"{row['median_latency_sec']:.2f}",
        ]
        for row in rows
    ]
    header = ["what adapts", "", "utterances/s", "mean exit level", "fidelity", "median latency (s)"]
    return render_result(result, header, lines)


def render_simulator() -> str:
    """Render real runs beside simulated ones."""
    result, rows = _read("mdi", "simulator")
    lines = []
    for row in rows:
        cells = [row["topology"], row["system"], f"{row['real_throughput']:.2f}", f"{row['simulated_throughput']:.2f}"]
        kinds = ("real", "simulated", "in_place", "plain")
        lines.append([*cells, *(f"{row[f'{kind}_median_latency_sec']:.2f}" for kind in kinds)])
    header = ["topology", "system", "utterances/s", "simulated", "median latency (s)", "simulated", "in place", "plain"]
    return render_result(result, header, lines)


def render_scale() -> str:
    """Render simulated systems of up to a thousand workers."""
    result, rows = _read("mdi", "scale")
    lines = [
        [
            f"{row['num_workers']:,}",
            f"{row['steady_throughput']:.1f}",
            f"{row['median_latency_sec']:.2f}",
            f"{row['p90_latency_sec']:.2f}",
            f"{row['simulation_sec']:.1f}",
        ]
        for row in rows
    ]
    header = ["workers", "utterances/s", "median latency (s)", "90 % (s)", "seconds to simulate"]
    return render_result(result, header, lines)


def render_kills() -> str:
    """Render whether all were answered once although workers were killed."""
    result, rows = _read("mdi", "kills")
    columns = ("num_kills", "num_admitted", "num_answered_once", "num_answers_twice", "num_restarts")
    lines = [[str(row[name]) for name in columns] for row in rows]
    return render_result(result, ["kills", "admitted", "answered once", "answered twice", "begun again"], lines)


TABLES: dict[str, Callable[[], str]] = {
    "distributed_speed": render_speed,
    "distributed_memory": render_memory,
    "distributed_failures": render_failures,
    "mdi_throughput": render_throughput,
    "mdi_fidelity": render_fidelity,
    "mdi_loads": render_loads,
    "mdi_simulator": render_simulator,
    "mdi_scale": render_scale,
    "mdi_kills": render_kills,
}
