"""What ``daisy extract`` did on the noisy test sets: exit layers, depth, real-time factor; from its index files.

python benchmarks/extraction.py runs/features
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from common import SNRS_DB, guarded, write

from daisy.evaluation.figures import format_snr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("features", type=Path)
    features = parser.parse_args().features
    measured = []
    for snr_db in SNRS_DB:
        index = json.loads((features / format_snr(snr_db).replace(" ", "") / "index.json").read_text())
        totals = index["totals"]
        measured.append({"policy": index["settings"]["policy"]["name"], "snr_db": snr_db, **totals})
        print(
            f"{format_snr(snr_db):6} {totals['mean_exit_layer']:.2f} real-time factor {totals['real_time_factor']:.4f}"
        )
    write("extraction", measured)


if __name__ == "__main__":
    guarded(main)
