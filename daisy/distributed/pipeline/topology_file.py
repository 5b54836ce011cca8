"""Topologies in YAML.

source: porch                      # where data come in; or sources, with rates and priorities
workers:
  porch: {layers: 1-4, speed: 0.2} # speed: emulated, of one core of this machine; leave it out on real devices
  attic: {layers: 5-8}
  cellar: {layers: 5-12, place: pi3} # place: a custom resource of the Ray node that it is to run on
links:                             # every two workers, at once, where there are none
  - {between: [porch, attic], delay_ms: 5, rate_mbit: 20, loss: 0.01}
cuts: [2]                          # further layers after which a task may change hands
rules: {neighbour_limit: 4}        # of daisy.distributed.pipeline.rules
cores: {here: 2}                   # of a machine, by place, or here: simulated workers share them
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from daisy.distributed.pipeline.rules import Rules
from daisy.distributed.pipeline.topology import Link, Place, Source, Topology
from daisy.errors import UsageError, unknown_name

KINDS: dict[str, type] = {
    "workers": dict,
    "links": list,
    "sources": dict,
    "cuts": list,
    "rules": dict,
    "cores": dict,
}
"""Top-level keys of a topology and their types."""


def read_topology(path: str | Path, num_layers: int) -> Topology:
    """Read a topology file.

    Args:
        path: path of a YAML file; see the top of this module.
        num_layers: layers of the model.

    Raises:
        UsageError: if the file cannot be read, the topology cannot work, or PyYAML is missing.
    """
    try:
        import yaml
    except ModuleNotFoundError:
        raise UsageError("topologies need PyYAML", remedy="ray") from None
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path}: cannot be read as YAML ({reason})") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: a topology has workers, links and a source; this is a {type(content).__name__}")
    try:
        return parse_topology(content, num_layers)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def parse_topology(content: Mapping[str, Any], num_layers: int) -> Topology:
    """Create a topology from the content of YAML or JSON.

    Args:
        content: see the top of this module.
        num_layers: layers of the model.

    Raises:
        UsageError: if the topology cannot work.
    """
    _check_keys("topology", content, {*KINDS, "source"})
    for name, kind in KINDS.items():
        if not isinstance(content.get(name) or kind(), kind):
            shape = "names with values" if kind is dict else "lists"
            raise UsageError(f"{name}: {shape} are wanted, found {content[name]!r}")
    workers = tuple(_parse_worker(name, values, num_layers) for name, values in (content.get("workers") or {}).items())
    names = [worker.name for worker in workers]
    given = content.get("links")
    pairs = itertools.combinations(names, 2)
    links = (
        tuple(Link(between=pair) for pair in pairs) if given is None else tuple(_parse_link(values) for values in given)
    )
    return Topology(
        num_layers=num_layers,
        workers=workers,
        links=links,
        sources=_parse_sources(content, names),
        cuts=tuple(content.get("cuts") or ()),
        rules=Rules().replace(**_parse_rules(content.get("rules") or {})),
        cores=dict(content.get("cores") or {}),
    )


def _parse_worker(name: str, values: Mapping[str, Any] | None, num_layers: int) -> Place:
    values = values or {}
    _check_keys(f"worker {name}", values, {"layers", "speed", "place", "threads"})
    text = str(values.get("layers", f"1-{num_layers}"))
    match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", text)
    if match is None:
        raise UsageError(f"worker {name}: layers must be like 1-4, found {text!r}")
    first, last = int(match[1]), int(match[2] or match[1])
    speed = values.get("speed")
    return Place(
        name=str(name),
        first=first,
        last=last,
        speed=None if speed is None else _number(f"worker {name}: speed", speed),
        place=_parse_place(name, values.get("place")),
        threads=int(_number(f"worker {name}: threads", values.get("threads", 1))),
    )


def _parse_place(name: str, place: object) -> str | None:
    if place is not None and not isinstance(place, str):
        raise UsageError(f"worker {name}: place must be a name, found {place!r}")
    return place


def _parse_rules(values: Mapping[str, Any]) -> Mapping[str, Any]:
    _check_keys("rules", values, {field.name for field in dataclasses.fields(Rules)})
    return values


def _parse_link(values: Mapping[str, Any]) -> Link:
    _check_keys("link", values, {"between", "delay_ms", "rate_mbit", "loss"})
    between = values.get("between")
    if not isinstance(between, list) or len(between) != 2:
        raise UsageError(f"a link is between two workers, such as [porch, attic], found {between!r}")
    where = f"link {between[0]} to {between[1]}"
    rate = values.get("rate_mbit")
    return Link(
        between=(str(between[0]), str(between[1])),
        delay_sec=_number(f"{where}: delay_ms", values.get("delay_ms", 0)) / 1e3,
        bytes_per_sec=float("inf") if rate is None else _number(f"{where}: rate_mbit", rate) * 1e6 / 8,
        loss=_number(f"{where}: loss", values.get("loss", 0)),
    )


def _parse_sources(content: Mapping[str, Any], names: list[str]) -> tuple[Source, ...]:
    if not content.get("sources"):
        return (Source(worker=str(content.get("source", names[0] if names else ""))),)
    sources = []
    for name, values in content["sources"].items():
        _check_keys(f"source {name}", values or {}, {"rate", "priority"})
        rate = (values or {}).get("rate")
        priority = int(_number(f"source {name}: priority", (values or {}).get("priority", 0)))
        rate = None if rate is None else _number(f"source {name}: rate", rate)
        sources.append(Source(worker=str(name), rate=rate, priority=priority))
    return tuple(sources)


def _number(what: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"{what} must be a number, found {value!r}")
    return float(value)


def _check_keys(what: str, values: Mapping[str, Any], known: set[str]) -> None:
    if not isinstance(values, Mapping):
        raise UsageError(f"{what}: names with values are wanted, found {values!r}")
    for key in values:
        if key not in known:
            raise UsageError(f"{what}: {unknown_name('setting', str(key), known)}")
