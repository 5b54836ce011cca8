"""Runs docs/tour.ipynb again, so that it shows the output of the current code.

python -m benchmarks.tour            # also: make tour
"""

from __future__ import annotations

from typing import Any

from benchmarks.shared.script import ROOT, make_parser, run_script
from daisy import _files

PATH = ROOT / "docs" / "tour.ipynb"
MAX_SEC = 1800
"""Time limit of a cell and of the kernel's start; on a busy machine they take ten times as long."""


def read_tour() -> Any:
    """Read the notebook."""
    import nbformat

    return nbformat.read(PATH, as_version=4)


def run_tour(book: Any) -> None:
    """Run a notebook in a kernel of this Python; its outputs keep no trace of when and where it ran."""
    import nbclient

    resources = {"metadata": {"path": PATH.parent}}
    client = nbclient.NotebookClient(
        book,
        timeout=MAX_SEC,
        startup_timeout=MAX_SEC,
        resources=resources,
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute()
    book.metadata.language_info = {"name": "python"}


def main() -> None:
    make_parser(__doc__).parse_args()
    import nbformat

    book = read_tour()
    run_tour(book)
    _files.write(PATH, (nbformat.writes(book) + "\n").encode())


if __name__ == "__main__":
    run_script(main)
