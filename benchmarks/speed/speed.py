"""Where the time goes, and savings from exits: measurements of our own encoder.

    python -m benchmarks.speed.speed                       # all of them; results/speed.json
    python -m benchmarks.speed.speed --only deciding mixed # some; the others' rows stay
    python -m benchmarks.speed.speed --quick               # a few recordings, no results file
    python -m benchmarks.speed.speed --device cuda         # all but stages and shapes; results/speed_cuda.json

precision   bfloat16 and int8 against float32: time, exit layers, states
deciding    scores at every layer without any exit, against no heads; Base with 504 units
stride      heads that read every 2nd or 4th frame, against all frames: time, exit layers, units
mixed       exits spread over layers 3 to 12 in one batch, against the sum of its parts
stages      the front end's share before and after, and multiply-accumulates per second against a matrix product's
shapes      recordings of 200 lengths, with and without rows added so that products share their shapes
end-to-end  test recordings, clean and noisy, with the default policy, against stock s3prl and our own full depth

Ratios are medians, with quartiles, over turns that follow one another. precision, stride, mixed and end-to-end need the
shared recordings; without them: --only deciding stages shapes.
"""

from __future__ import annotations

import logging

import torch

from benchmarks.shared.results import read_rows_beside, write_result
from benchmarks.shared.script import make_parser, parse_positive, run_script
from benchmarks.speed.approximations import measure_precision, measure_stride
from benchmarks.speed.exits import measure_deciding, measure_end_to_end, measure_mixed
from benchmarks.speed.stages import measure_shapes, measure_stages
from daisy.cli.options import check_device
from daisy.errors import UsageError

MEASURES = {
    "precision": measure_precision,
    "deciding": measure_deciding,
    "stride": measure_stride,
    "mixed": measure_mixed,
    "stages": measure_stages,
    "shapes": measure_shapes,
    "end-to-end": measure_end_to_end,
}
ON_CPUS_ONLY = ("stages", "shapes")


def main() -> None:
    parser = make_parser(__doc__, quick="a few recordings and turns; nothing is written")
    parser.add_argument("--only", nargs="+", choices=list(MEASURES))
    parser.add_argument("--threads", type=parse_positive, default=1, help="with any number but 1 nothing is written")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    device = check_device(arguments.device)
    able = list(MEASURES) if device == "cpu" else [name for name in MEASURES if name not in ON_CPUS_ONLY]
    if wrong := set(arguments.only or ()) - set(able):
        raise UsageError(f"{', '.join(sorted(wrong))}: on CPUs only")
    name = "speed" if device == "cpu" else f"speed_{device}"
    torch.set_num_threads(arguments.threads)
    logging.disable(logging.INFO)  # s3prl logs its whole configuration
    writes = not arguments.quick and arguments.threads == 1
    rows = read_rows_beside(name) if writes else []
    for measure in arguments.only or able:
        others = [row for row in rows if row["measure"] != measure]
        rows = others + MEASURES[measure](arguments.quick, device)
        if writes:
            write_result(name, rows, arguments=() if device == "cpu" else ("--device", device))


if __name__ == "__main__":
    run_script(main)
