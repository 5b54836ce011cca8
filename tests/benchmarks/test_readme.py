import re
from pathlib import Path

import pytest

from benchmarks import readme
from daisy.policies import POLICIES

ROOT = Path(__file__).parents[2]


def test_tables_are_rendered_from_the_results():
    for page in readme.PAGES:
        text = page.read_text(encoding="utf-8")
        assert readme.render_page(text) == text, f"{page}: make readme"


def test_links_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "daisy" / "assets").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), (page, target)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_is_documented(policy):
    assert f"| `{policy}`" in (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
