import re
import sys
from pathlib import Path

import pytest

from daisy.policies import POLICIES

ROOT = Path(__file__).parents[1]


def test_tables_are_rendered_from_the_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import readme

    for page in readme.PAGES:
        text = page.read_text(encoding="utf-8")
        assert readme.render(text) == text, f"{page}: make readme"
    del sys.modules["readme"]


def test_links_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "daisy" / "models").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), (page, target)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_is_documented(policy):
    assert f"| `{policy}`" in (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
