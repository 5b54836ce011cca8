"""Renders tables and sentences of README and docs from results/*.json, between ``<!-- table NAME -->`` and its end.

python -m benchmarks.readme            # also: make readme
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import benchmarks.distributed.tables
import benchmarks.minisuperb.tables
import benchmarks.policies.tables
import benchmarks.recognition.tables
import benchmarks.speed.tables
import benchmarks.summary
import benchmarks.tables
import benchmarks.training.tables
import benchmarks.units.tables
from benchmarks.shared.script import ROOT, make_parser, run_script
from daisy import _files

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.S)


TABLES: dict[str, Callable[[], str]] = {
    **benchmarks.tables.TABLES,
    **benchmarks.distributed.tables.TABLES,
    **benchmarks.policies.tables.TABLES,
    **benchmarks.training.tables.TABLES,
    **benchmarks.minisuperb.tables.TABLES,
    **benchmarks.recognition.tables.TABLES,
    **benchmarks.speed.tables.TABLES,
    **benchmarks.summary.TABLES,
    **benchmarks.units.tables.TABLES,
}


def render_page(text: str) -> str:
    """Render every table of a page again."""
    return BLOCK.sub(lambda block: block[1] + TABLES[block[2]]() + block[3], text)


def main(pages: Iterable[Path] = PAGES) -> None:
    make_parser(__doc__).parse_args()
    for page in pages:
        _files.write(page, render_page(page.read_text(encoding="utf-8")).encode())


if __name__ == "__main__":
    run_script(main)
