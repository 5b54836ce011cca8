"""Who speaks in each recording of the training sets, for `daisy manifest --speakers`; a group where nobody says.

python -m benchmarks.training.speakers speakers.csv
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from benchmarks.shared.recordings import TRAINING_SETS, read_index
from benchmarks.shared.script import make_parser, run_script
from daisy import _files


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    content = io.StringIO()
    writer = csv.writer(content)
    writer.writerow(["path", "speaker"])
    for name in TRAINING_SETS:
        for row in read_index(name, "train"):
            writer.writerow([f"{name}/{row['path']}", f"{name}:{row['speaker'] or row['group']}"])
    _files.write(arguments.out, content.getvalue().encode())


if __name__ == "__main__":
    run_script(main)
