"""Redraws the figures of the README and docs from results/*.json; nothing is measured.

python -m benchmarks.figures                      # all; also: make figures
python -m benchmarks.figures policies heads       # only these results
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import benchmarks.policies.noise_curve
import benchmarks.policies.policies
import benchmarks.recognition.policies
import benchmarks.speed.figures
import benchmarks.training.heads
import benchmarks.training.probes
import benchmarks.units.policies
from benchmarks.shared.results import RESULTS, read_result
from benchmarks.shared.script import make_parser, run_script
from daisy.errors import UsageError, unknown_name

FIGURES: dict[str, Callable[..., Any]] = {
    "noise_curve": benchmarks.policies.noise_curve.draw,
    "policies": benchmarks.policies.policies.draw,
    "heads": benchmarks.training.heads.draw,
    "probes": benchmarks.training.probes.draw,
    "discrete_units": benchmarks.units.policies.draw,
    "early_exit_asr_policies": benchmarks.recognition.policies.draw,
    "latency": partial(benchmarks.speed.figures.draw_latency, name="latency"),
    "latency_cuda": partial(benchmarks.speed.figures.draw_latency, name="latency_cuda"),
    "memory": benchmarks.speed.figures.draw_memory,
}
"""Maps results to the functions that draw them."""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FIGURES))
    names = parser.parse_args().names or [name for name in FIGURES if (RESULTS / f"{name}.json").is_file()]
    for name in names:
        if name not in FIGURES:
            raise UsageError(unknown_name("figure", name, FIGURES))
        FIGURES[name](read_result(name)["rows"])
        print(f"{name}: drawn")


if __name__ == "__main__":
    run_script(main)
