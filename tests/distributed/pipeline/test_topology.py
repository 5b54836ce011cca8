"""Topologies from YAML, and invalid ones, which are refused."""

import dataclasses
import math
import re
from pathlib import Path

import pytest

from daisy.distributed.pipeline.baselines import SYSTEMS, make_system
from daisy.distributed.pipeline.rules import Rules
from daisy.distributed.pipeline.topology import Source
from daisy.distributed.pipeline.topology_file import parse_topology, read_topology
from daisy.errors import UsageError

TEXT = """
source: porch
workers:
  porch: {layers: 1-4, speed: 0.2}
  attic: {layers: 5-8, threads: 2}
  cellar: {layers: 5-12, place: pi3}
  shed: {layers: 9-12}
links:
  - {between: [porch, attic], delay_ms: 5, rate_mbit: 20, loss: 0.2}
  - {between: [porch, cellar]}
  - {between: [attic, shed]}
cuts: [2]
rules: {neighbour_limit: 7, admission: rate}
cores: {here: 2, pi3: 4}
"""


def parse(num_layers=4, **content):
    return parse_topology({"source": "a", **content}, num_layers)


def test_a_topology_from_a_file(tmp_path):
    pytest.importorskip("yaml")
    path = tmp_path / "house.yaml"
    path.write_text(TEXT)
    topology = read_topology(path, 12)
    assert topology.stages == (range(1, 3), range(3, 5), range(5, 9), range(9, 13))
    assert [topology.stages_of(place.name) for place in topology.workers] == [
        range(0, 2),
        range(2, 3),
        range(2, 4),
        range(3, 4),
    ]
    assert (topology.worker("porch").speed, topology.worker("attic").threads) == (0.2, 2)
    assert (topology.worker("cellar").place, topology.worker("shed").speed) == ("pi3", None)
    link = topology.link("attic", "porch")
    assert (link.delay_sec, link.bytes_per_sec, link.loss) == (0.005, 2.5e6, 0.2)
    assert link.sec_per_byte == pytest.approx(1 / 2e6)  # every fifth is sent again
    assert topology.link("porch", "shed") is None
    assert [neighbour.name for neighbour in topology.neighbours_of("attic")] == ["porch", "shed"]
    assert topology.rules == Rules(neighbour_limit=7, admission="rate")
    assert topology.cores == {"here": 2, "pi3": 4}
    assert [place.machine for place in topology.workers] == ["here", "here", "pi3", "here"]
    assert make_system("one-worker", topology).cores == {"here": 2}


def test_the_page_names_every_rule_and_its_default():
    page = (Path(__file__).parents[3] / "docs" / "clusters.md").read_text(encoding="utf-8")
    named = dict(re.findall(r"^\| `(\w+)` \| ([\w.]+) \|", page, re.M))
    assert named == {field.name: str(field.default).lower() for field in dataclasses.fields(Rules)}


def test_without_links_all_are_connected_and_the_first_is_the_source():
    topology = parse_topology({"workers": {"a": None, "b": {}, "c": {}}, "sources": None}, 4)
    assert len(topology.links) == 3
    assert topology.sources == (Source(worker="a"),)
    assert topology.stages == (range(1, 5),)


def test_sources_with_rates_and_priorities():
    workers = {"a": {}, "b": {}}
    topology = parse_topology({"workers": workers, "sources": {"b": {"rate": 3, "priority": 2}, "a": {}}}, 4)
    assert topology.sources == (Source(worker="b", rate=3.0, priority=2), Source(worker="a"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"workers": {"a": {"layers": "1-5"}}}, "layers 1-5 are not of 1-4"),
        ({"workers": {"a": {"layers": "1 to 4"}}}, "layers must be like 1-4"),
        ({"workers": {"a": {"speed": 2}}}, "speed must be above 0 and at most 1"),
        ({"workers": {"a": {"layer": 1}}}, "unknown setting 'layer': did you mean layers"),
        ({"workers": {"a": {}}, "source": "b"}, "source 'b' is not one of the workers a"),
        ({"workers": {}}, "at least one worker"),
        ({"workers": {"a": {}}, "links": [{"between": ["a", "x"]}]}, "not two of the workers"),
        ({"workers": {"a": {}, "b": {}}, "links": [{"between": ["a", "b"], "loss": 1}]}, "loss at least 0 and below 1"),
        ({"workers": {"a": {}}, "cuts": [4]}, "cuts are layers from 1 to 3"),
        ({"workers": {"a": {}}, "rules": {"memori": 1}}, "did you mean memory"),
        ({"workers": {"a": {}}, "rules": {1: 2}}, "unknown setting '1'"),
        ({"workers": {"a": {"threads": math.inf}}}, "worker a: threads must be a number, found inf"),
        ({"workers": {"a": {"place": ["x"]}}}, r"worker a: place must be a name, found \['x'\]"),
        (
            {"workers": {"a": {}, "b": {}}, "links": [{"between": ["a", "b"], "delay_ms": math.nan}]},
            "delay_ms must be a number, found nan",
        ),
        ({"workers": {"a": {}}, "cores": {"there": 2}}, "cores of 'there': workers are on here"),
        ({"workers": {"a": {}}, "cores": {"here": 0}}, "cores of here: a number from 1 on is wanted, found 0"),
        ({"workers": {"a": {}}, "rules": {"offloading": "best"}}, "unknown offloading 'best'"),
        (
            {"workers": {"a": {}}, "rules": {"neighbour_limit": "four"}},
            "neighbour_limit must be a whole number, .*four",
        ),
        ({"workers": {"a": {}}, "rules": {"output_limit": 1.5}}, "output_limit must be a whole number"),
        ({"workers": {"a": {}}, "rules": {"dead_after_sec": "fast"}}, "dead_after_sec must be a number, at least 0"),
        ({"workers": {"a": {}}, "rules": {"respawn_sec": -1}}, "respawn_sec must be a number, at least 0, found -1"),
        ({"workers": {"a": {}}, "rules": {"status_sec": 2}}, "dead_after_sec 1 must be above status_sec 2"),
        ({"workers": {"a": {"speed": 0.5, "threads": 2}}}, "a speed is emulated of one core, with 2 threads"),
        ({"workers": {"a": {}, "b": {}}, "links": [{"between": 3}]}, "a link is between two workers, such as"),
        ({"workers": {"a": {"layers": "1-2"}, "b": {"layers": "3-4"}}, "links": []}, "could go nowhere for layers 3-4"),
        ({"workers": {"a": {"layers": "3-4"}, "b": {"layers": "1-2"}}, "links": []}, "could go nowhere for layers 1-2"),
        (  # c takes stage 1 of some tasks, and has no link to d
            {
                "workers": {"a": {"layers": 1}, "b": {"layers": 2}, "c": {"layers": 2}, "d": {"layers": "3-4"}},
                "links": [{"between": pair} for pair in (["a", "b"], ["a", "c"], ["b", "d"])],
            },
            "a task at c could go nowhere for layers 3-4",
        ),
    ],
)
def test_what_cannot_work_is_refused(content, message):
    with pytest.raises(UsageError, match=message):
        parse(**content)


def test_a_file_that_is_no_topology_is_named(tmp_path):
    pytest.importorskip("yaml")
    path = tmp_path / "x.yaml"
    for text, message in (("[1]", "this is a list"), ("a: [", "cannot be read as YAML"), ("workers: 3", "names with")):
        path.write_text(text)
        with pytest.raises(UsageError, match=f"{path}: .*{message}"):
            read_topology(path, 4)


def test_baselines_change_what_their_names_say():
    workers = {"a": {"layers": "1-2", "speed": 0.5}, "b": {"layers": "3-4"}}
    topology = parse(workers=workers)
    made = {name: make_system(name, topology) for name in SYSTEMS}
    assert made["mdi"] == topology
    assert not made["no-exits"].rules.exits
    assert made["no-exits"].workers == topology.workers
    assert made["random"].rules.offloading == "random"
    assert made["joint"].rules.offloading == "routed"
    for name in ("data", "data-exits"):
        assert all((place.first, place.last) == (1, 4) for place in made[name].workers)
        assert made[name].stages == (range(1, 5),)
        assert made[name].rules.exits == (name == "data-exits")
    (alone,) = made["one-worker"].workers
    assert (alone.name, alone.first, alone.last, alone.speed) == ("a", 1, 4, 0.5)
    with pytest.raises(UsageError, match="unknown system"):
        make_system("mdx", topology)


def test_sources_reach_everybody_where_everybody_holds_the_whole_model():
    """Through b, with the times and delays of both links; the shorter way where there are two."""
    links = [
        {"between": ["a", "b"], "delay_ms": 5, "rate_mbit": 8},
        {"between": ["b", "c"], "delay_ms": 2, "rate_mbit": 8, "loss": 0.5},
        {"between": ["c", "d"]},
    ]
    layers = {"a": "1-2", "b": "3-4", "c": "3-4", "d": "3-4"}
    topology = parse(workers={name: {"layers": text} for name, text in layers.items()}, links=links)
    assert topology.link("a", "c") is None
    made = make_system("data", topology)
    link = made.link("a", "c")
    assert (link.delay_sec, link.sec_per_byte) == (pytest.approx(0.007), pytest.approx(1e-6 + 2e-6))
    assert made.link("a", "d").sec_per_byte == pytest.approx(3e-6)
    assert made.link("a", "b") == topology.link("a", "b")
    assert made.link("b", "d") is None
    assert {neighbour.name for neighbour in made.neighbours_of("a")} == {"b", "c", "d"}


@pytest.mark.parametrize("stuck", ["d", "e"])
def test_every_way_of_a_task_is_looked_at(stuck):
    """Two ways through b or c to d or e, of which one has no link to the last layers."""
    layers = {"a": 1, "b": 2, "c": 2, "d": 3, "e": 3, "f": 4}
    ways = [["a", "b"], ["a", "c"], ["b", "d"], ["c", "e"], ["d" if stuck == "e" else "e", "f"]]
    content = {
        "workers": {name: {"layers": layer} for name, layer in layers.items()},
        "links": [{"between": pair} for pair in ways],
    }
    with pytest.raises(UsageError, match=f"a task at {stuck} could go nowhere for layers 4-4"):
        parse(**content)
