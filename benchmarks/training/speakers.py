"""Who speaks in each recording of the training sets, for `daisy manifest --speakers`; a cluster where nobody says.

python benchmarks/speakers.py speakers.csv
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

from common import guarded, rows

from daisy import _files

SETS = ("librispeech", "commands", "keywords")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    content = io.StringIO()
    writer = csv.writer(content)
    writer.writerow(["path", "speaker"])
    for name in SETS:
        for row in rows(name, "train"):
            writer.writerow([f"{name}/{row['path']}", f"{name}:{row['speaker'] or row['group']}"])
    _files.write(arguments.out, content.getvalue().encode())


if __name__ == "__main__":
    guarded(main)
