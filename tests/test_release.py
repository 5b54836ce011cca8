"""Facts about a release that are stated in several places agree."""

import re
from pathlib import Path

from daisy.version import __version__
from tests.test_package import RANKS

ROOT = Path(__file__).parents[1]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_citations_have_the_version():
    assert re.search(r"^version: (\S+)$", read("CITATION.cff"), re.M)[1] == __version__
    assert re.search(r"Version ([\d.]+)\}", read("CITATION.bib"))[1] == __version__


def test_the_changelog_has_the_version_and_what_comes_after():
    headings = re.findall(r"^## \[?(\S+?)\]?(?: .*)?$", read("CHANGELOG.md"), re.M)
    released = [heading for heading in headings if heading != "Unreleased"]
    assert released[0] == __version__
    assert "Unreleased" not in headings[1:]


def test_both_citations_are_of_the_same_paper():
    title = "Data Adaptive Self-Supervised Early Exit for Speech Representation Models"
    for name in ("CITATION.cff", "CITATION.bib"):
        assert title in read(name)
        assert "2406.05464" in read(name)


def test_contributing_has_the_order_of_packages():
    order = "; ".join(", ".join(f"`{name}`" for name in sorted(names)) for names in RANKS)
    assert order in " ".join(read("CONTRIBUTING.md").split())


def test_workflows_only_call_make():
    targets = re.findall(r"^([\w.-]+(?: [\w.-]+)*):(?!=)", read("Makefile"), re.M)
    known = {name for line in targets for name in line.split()}
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        steps = re.findall(r"run: (.*)", path.read_text())
        assert steps, path
        for step in steps:
            for name in [step.replace("${{ matrix.python }}", minor) for minor in ("3.11", "3.12", "3.13")]:
                assert re.fullmatch(r"make [\w.-]+", name), (path, step)
                assert name.split()[1] in known, (path, step)
