"""What mkdocs does besides: the site gets the repository's own tree, so that links work here as on a code forge.

`README.md` is the home page, other pages and images stand at their own paths, those of ``docs/reference`` are made from
docstrings, and links to what is no page, such as folders of code, become plain text. A page that would load something
from a network is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
REFERENCE = "docs/reference/"
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
OF_MODULES = ("fairseq_plugins", "s3prl_upstream")
"""Packages that export modules; the reference shows what is in them."""
SHOWN = {".md", ".png", ".svg", ".jpg", ".ipynb"}
"""Endings of what the site has; of other files it has no copy."""
LOADED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//[^>]*>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put pages and images at their places in the repository, and add those made from docstrings."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    for path in sorted(find_linked(path for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *listed(config)])):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for style in map(str, config.extra_css):
        if (ROOT / style).is_file():  # mkdocstrings makes its own
            files.append(File.generated(config, style, abs_src_path=str(ROOT / style)))
    for name in names(config.nav):
        if name.startswith(REFERENCE):
            module = name.removeprefix(REFERENCE).removesuffix(".md")
            options = "    options:\n      show_submodules: true\n" if module in OF_MODULES else ""
            files.append(File.generated(config, name, content=f"# {module}\n\n::: {module}\n{options}"))
    return files


def names(nav: Any) -> list[str]:
    """List the paths of a navigation."""
    if isinstance(nav, str):
        return [nav]
    return [name for part in (nav.values() if isinstance(nav, dict) else nav or ()) for name in names(part)]


def listed(config: MkDocsConfig) -> list[Path]:
    """List the pages of the navigation that are files."""
    return [ROOT / name for name in names(config.nav) if (ROOT / name).is_file()]


def find_linked(pages: Any) -> set[Path]:
    """Find all that pages link to and the site can show, and what that links to."""
    seen: set[Path] = set()
    waiting = list(pages)
    while waiting:
        path = waiting.pop().resolve()
        if path in seen:
            continue
        seen.add(path)
        if path.suffix == ".md":
            targets = (resolve(path, match["target"]) for match in LINK.finditer(path.read_text(encoding="utf-8")))
            waiting += [target for target in targets if target and target.suffix in SHOWN and target.is_file()]
    return seen


def resolve(page: Path, target: str) -> Path | None:
    """Resolve a link of a page to a path of the repository; None where it leads elsewhere."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc or not parts.path:
        return None
    path = (page.parent / parts.path).resolve()
    return path if path.is_relative_to(ROOT) else None


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to what the site does not have, such as folders of code, into text; those to nothing fail later."""

    def keep(match: re.Match[str]) -> str:
        path = resolve(ROOT / page.file.src_uri, match["target"])
        is_code = path is not None and path.exists() and path.relative_to(ROOT).as_posix() not in files.src_uris
        return match["text"] if is_code and not match["image"] else match[0]

    return LINK.sub(keep, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that loads something from elsewhere.

    Raises:
        PluginError: naming what.
    """
    loaded = LOADED.search(output)
    if loaded:
        raise PluginError(f"{page.file.src_uri}: would load from a network: {loaded[0]}")
    return output
