import re
from pathlib import Path

import pytest

from benchmarks import readme
from benchmarks.shared.rendering import format_significant
from daisy.calibration.families import CALIBRATED_FAMILIES
from daisy.policies import POLICIES

ROOT = Path(__file__).parents[2]


def test_tables_are_rendered_from_the_results():
    for page in readme.PAGES:
        text = page.read_text(encoding="utf-8")
        assert readme.render_page(text) == text, f"{page}: make readme"


@pytest.mark.parametrize(("value", "text"), [(0.012345, "0.0123"), (26.19, "26.2"), (262.4, "262"), (45_905, "45,900")])
def test_large_numbers_are_rounded_too(value, text):
    assert format_significant(value) == text


PART_OF_ANOTHER = {"exits"}


def test_every_table_that_has_results_is_on_a_page():
    text = "".join(page.read_text(encoding="utf-8") for page in readme.PAGES)
    shown = set(re.findall(r"<!-- table (\w+) -->", text))
    later = set(re.findall(r"<!-- later: table (\w+) -->", text))
    assert shown | later <= set(readme.TABLES)
    for name in set(readme.TABLES) - shown - PART_OF_ANOTHER:
        with pytest.raises(FileNotFoundError):
            readme.TABLES[name]()


PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "daisy" / "assets").glob("*.md"),
]


def find_anchors(path):
    """What a code forge calls the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.M)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            path = page.parent / target if target else page
            assert path.exists(), target
            assert not anchor or anchor in find_anchors(path), f"{target}#{anchor}"


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_is_documented(policy):
    assert f"| `{policy}`" in (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")


def test_policies_that_calibrate_sets_are_marked():
    page, _scores = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8").split("## Scores")
    marks = dict(re.findall(r"^\| `(\w+)`.*\| ?(\w*) ?\|$", page, re.M))
    assert set(marks) == set(POLICIES)
    assert {policy for policy, mark in marks.items() if mark == "yes"} == set(CALIBRATED_FAMILIES)
