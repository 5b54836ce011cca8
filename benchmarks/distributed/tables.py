"""Tables about several processes and machines, from distributed_extraction.json and mdi.json."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.shared.rendering import Columns, format_field, render_columns, render_result
from benchmarks.shared.results import Result, Row, read_result
from daisy.distributed.pipeline.rules import RUN_ALL

SYSTEM: Columns = {"topology": format_field("topology"), "system": format_field("system")}
LATENCY: Columns = {"median latency (s)": format_field("median_latency_sec", ".2f")}


def _read(name: str, part: str) -> tuple[Result, list[Row]]:
    """Read a result, and the rows of one of its parts.

    Raises:
        FileNotFoundError: if the part has not been measured yet.
    """
    result = read_result(name)
    rows = [row for row in result["rows"] if part in (row.get("measure"), row.get("part"))]
    if not rows:
        raise FileNotFoundError(f"results/{name}.json has no rows of {part} yet")
    return result, rows


def render_part(name: str, part: str, columns: Columns) -> str:
    """Render the rows of a part of results/NAME.json."""
    return render_columns(*_read(name, part), columns)


SPEED: Columns = {
    "engine": format_field("engine"),
    "workers": format_field("workers"),
    "start (s)": format_field("start_sec", ".1f"),
    "seconds from then on": format_field("busy_sec", ".1f"),
    "beside local": format_field("overhead", "+.0%"),
    "audio hours an hour": format_field("audio_hours_per_hour", ".0f"),
}
THROUGHPUT: Columns = {
    **SYSTEM,
    "utterances/s": format_field("steady_throughput", ".2f"),
    "simulated": format_field("simulated_steady_throughput", ".2f"),
    "fidelity": format_field("fidelity", ".3f"),
    **LATENCY,
    "MB sent": format_field("megabytes_sent", ".1f"),
}
FIDELITY: Columns = {
    "load": format_field("load"),
    **SYSTEM,
    "come in/s": format_field("rate", ".2f"),
    "answered/s": format_field("throughput", ".2f"),
    "fidelity": format_field("fidelity", ".3f"),
    "mean exit layer": format_field("mean_exit_layer", ".1f"),
    **LATENCY,
}
LOADS: Columns = {
    "what adapts": format_field("admission"),
    "from (s)": format_field("begin_sec", ".0f"),
    "utterances/s": format_field("throughput", ".2f"),
    "mean exit level": format_field("mean_level", ".2f"),
    "fidelity": format_field("fidelity", ".3f"),
    **LATENCY,
}
SIMULATOR: Columns = {
    **SYSTEM,
    "utterances/s": format_field("real_throughput", ".2f"),
    "simulated": format_field("simulated_throughput", ".2f"),
    "median latency (s)": format_field("real_median_latency_sec", ".2f"),
    "simulated (s)": format_field("simulated_median_latency_sec", ".2f"),
    "in place (s)": format_field("in_place_median_latency_sec", ".2f"),
    "plain (s)": format_field("plain_median_latency_sec", ".2f"),
}
SCALE: Columns = {
    "workers": format_field("num_workers", ","),
    "utterances/s": format_field("steady_throughput", ".1f"),
    **LATENCY,
    "90 % (s)": format_field("p90_latency_sec", ".2f"),
    "seconds to simulate": format_field("simulation_sec", ".1f"),
}
WIRES: Columns = {
    "topology": format_field("topology"),
    "links in a row": format_field("num_links"),
    "states as": format_field("wire"),
    "kbit/s of audio on a link": format_field("kbit_per_audio_sec", ".0f"),
    "fidelity": format_field("fidelity", ".4f"),
}
KILLS: Columns = {
    "kills": format_field("num_kills"),
    "admitted": format_field("num_admitted"),
    "answered once": format_field("num_answered_once"),
    "late answers dropped": format_field("num_late_answers"),
    "begun again": format_field("num_restarts"),
}


def render_levels() -> str:
    """Render the fidelity of each exit level on the utterances that it was set on, and on others."""
    result, rows = _read("mdi", "levels")
    levels = [row for row in rows if row["recordings"] == "set on"]
    others = {row["level"]: row for row in rows if row["recordings"] == "held out"}
    lines = [
        [
            "without exits" if row["level"] == RUN_ALL else str(row["level"]),
            f"{row['depth']:.0%}",
            *(f"{one['mean_exit_layer']:.1f}" for one in (row, others[row["level"]])),
            *(f"{one['fidelity']:.3f}" for one in (row, others[row["level"]])),
        ]
        for row in levels
    ]
    header = ["exit level", "layers wanted", "mean exit layer", "of others", "fidelity", "of others"]
    return render_result(result, header, lines)


def render_memory() -> str:
    """Render the peak memory of the process that distributes the work."""
    result, rows = _read("distributed_extraction", "memory")
    lines = [[row["engine"], f"{row['num_recordings']:,}", f"{row['peak_bytes'] / 1e9:.2f}"] for row in rows]
    for row in _read("distributed_extraction", "driver")[1]:
        lines.append(["without a model", f"{row['num_recordings']:,}", f"{row['peak_bytes'] / 1e9:.2f}"])
    return render_result(result, ["engine", "recordings", "peak (GB)"], lines)


def render_failures() -> str:
    """Render what was lost and repeated when processes and nodes were killed."""
    result, kills = _read("distributed_extraction", "kills")
    nodes = _read("distributed_extraction", "nodes")[1]
    workers, drivers = (sum(row[name] for row in kills) for name in ("killed_workers", "killed_drivers"))
    lines = [
        [
            f"{workers} workers, {drivers} drivers",
            str(sum(row["lost"] + row["double"] for row in kills)),
            str(sum(row["repeated_batches"] for row in kills)),
            str(sum(row["repeated_files"] for row in kills)),
        ],
        *(["a node of two", str(row["lost"] + row["double"]), str(row["repeated_batches"]), ""] for row in nodes),
    ]
    header = ["killed", "recordings lost or double", "batches begun again", "finished files written anew"]
    return render_result(result, header, lines)


TABLES: dict[str, Callable[[], str]] = {
    "distributed_speed": partial(render_part, "distributed_extraction", "speed", SPEED),
    "distributed_memory": render_memory,
    "distributed_failures": render_failures,
    "mdi_levels": render_levels,
    "mdi_throughput": partial(render_part, "mdi", "throughput", THROUGHPUT),
    "mdi_fidelity": partial(render_part, "mdi", "fidelity", FIDELITY),
    "mdi_loads": partial(render_part, "mdi", "loads", LOADS),
    "mdi_simulator": partial(render_part, "mdi", "simulator", SIMULATOR),
    "mdi_scale": partial(render_part, "mdi", "scale", SCALE),
    "mdi_wires": partial(render_part, "mdi", "wires", WIRES),
    "mdi_kills": partial(render_part, "mdi", "kills", KILLS),
}
