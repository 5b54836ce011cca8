"""Write the self-contained HTML page: sections with figures and tables."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from daisy import _files
from daisy.errors import UsageError
from daisy.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).parents[1] / "assets" / "templates" / "report.html"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page."""

    title: str
    text: str = ""
    figures: tuple[tuple[str, Figure], ...] = ()
    """Captions and figures."""
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    folded: bool = False
    """Whether the table is shown only on request."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Content for `write_page`."""

    title: str
    summary: str
    command: str
    """The exact command line."""
    footnote: str = ""
    sections: list[Section] = field(default_factory=list)


def check_report_packages() -> None:
    """Refuse a page with figures if a package that makes them is missing.

    Raises:
        UsageError: where one is missing.
    """
    for name in ("jinja2", "matplotlib"):
        if find_spec(name) is None:
            raise UsageError(f"reports need {name}: pip install 'daisy-speech[analysis]'")


def write_page(page: Page, path: Path) -> None:
    """Write one HTML file with everything in it, which opens anywhere without a network.

    Raises:
        UsageError: where jinja2 is missing.
        OutputError: where it cannot be written.
    """
    check_report_packages()
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    sections = [
        {
            "title": section.title,
            "text": section.text,
            "header": section.header,
            "rows": section.rows,
            "folded": section.folded,
            "figures": [{"caption": caption, "source": _inline(figure)} for caption, figure in section.figures],
        }
        for section in page.sections
    ]
    text = template.render(
        title=page.title, summary=page.summary, sections=sections, command=page.command, footnote=page.footnote,
        version=__version__,
    )  # fmt: skip
    _files.write(path, text.encode())


def _inline(figure: Figure) -> str:
    content = io.BytesIO()
    figure.savefig(content, format="svg")
    return "data:image/svg+xml;base64," + base64.b64encode(content.getvalue()).decode()
