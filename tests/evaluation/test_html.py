"""HTML pages."""

import pytest

from daisy.cli.study_output import Comparison
from daisy.errors import UsageError
from daisy.evaluation import html


def test_packages_that_a_page_needs_are_looked_for_before_the_long_runs(monkeypatch, tmp_path):
    comparison = Comparison(out=tmp_path, policies="", depth=0.6, depths="", report=tmp_path / "x.html", title="t")
    comparison.check()
    monkeypatch.setattr(html, "find_spec", lambda name: None if name == "matplotlib" else True)
    with pytest.raises(UsageError, match=r"reports need matplotlib: pip install 'daisy-speech\[analysis\]'"):
        comparison.check()
