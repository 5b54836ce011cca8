"""What ``daisy extract`` did on the noisy test sets: exit layers, depth, real-time factor; from its index files.

python -m benchmarks.policies.extraction runs/features
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.policies.noisy_sets import name_folder
from benchmarks.shared.results import write_result
from benchmarks.shared.script import make_parser, run_script
from daisy.cli.options import SNRS_DB
from daisy.evaluation.figures import format_snr


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("features", type=Path, help="folder of daisy extract's outputs, a folder a ratio")
    features = parser.parse_args().features
    rows = []
    for snr_db in SNRS_DB:
        index = json.loads((features / name_folder(snr_db) / "index.json").read_text(encoding="utf-8"))
        totals = index["totals"]
        rows.append({"policy": index["settings"]["policy"]["name"], "snr_db": snr_db, **totals})
        factor = totals["real_time_factor"]
        print(f"{format_snr(snr_db):6} {totals['mean_exit_layer']:.2f} real-time factor {factor:.4f}")
    write_result("extraction", rows)


if __name__ == "__main__":
    run_script(main)
