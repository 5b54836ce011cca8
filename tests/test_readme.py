import re
import sys
from pathlib import Path

import pytest

from daisy.policies import POLICIES

ROOT = Path(__file__).parents[1]


def test_tables_are_rendered_from_the_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import readme

    text = readme.README.read_text(encoding="utf-8")
    assert readme.BLOCK.search(text)
    assert readme.render(text) == text, "make readme"
    del sys.modules["readme"]


def test_links_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_is_documented(policy):
    assert f"`{policy}`" in (ROOT / "README.md").read_text(encoding="utf-8")
