"""The figures' code draws what results/*.json hold, at most eight lines in one."""

import pytest

from benchmarks.shared.results import RESULTS, read_result
from daisy.evaluation import figures as library_figures

pytest.importorskip("sklearn", reason="needs scikit-learn")
from benchmarks import figures

DRAWN = ("noise_curve", "policies", "heads", "probes")


@pytest.mark.parametrize("name", DRAWN)
def test_figures_are_drawn_from_the_results(name, tmp_path, monkeypatch):
    made = []
    make_axes = library_figures.make_axes
    monkeypatch.setattr(
        library_figures, "make_axes", lambda *size: made.append(make_axes(*size)) or made[-1]
    )  # looked at, not replaced
    figures.FIGURES[name](read_result(name)["rows"], path=tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    for figure, axes in made:
        assert len(axes.lines) <= 8
        assert axes.get_title("left")
        assert len(figure.legends) == 1


def test_a_figure_stands_beside_every_result_that_has_one():
    beside = {"early_exit_asr_policies": "early_exit_asr"}
    for name in figures.FIGURES:
        if (RESULTS / f"{name}.json").is_file():
            assert (RESULTS / f"{beside.get(name, name)}.png").is_file()
