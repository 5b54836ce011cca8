"""The code of the figures draws the contents of results/*.json, at most eight lines per figure."""

import numpy
import pytest
import torch

from benchmarks.shared import recordings
from benchmarks.shared.results import RESULTS, read_result
from daisy.evaluation import figures as library_figures

pytest.importorskip("sklearn", reason="needs scikit-learn")
from benchmarks import figures
from benchmarks.training import probes

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


def test_probes_resample_speakers_and_training_audio_chooses_their_best_layer(monkeypatch, tmp_path):
    """Of two speakers one is always told rightly: who may hear either twice may find none right, or all."""
    utterances = [recordings.Utterance(torch.zeros(1), speaker, "digits") for speaker in "ab" for _ in range(30)]
    index = [{"label": label} for label in ["yes", "no"] * 30]
    values = numpy.array([1.0, -1.0] * 15 + [-1.0, 1.0] * 15)[:, None, None]  # the second speaker's are the reverse
    split = probes.Split(utterances, index)
    features = {"train": numpy.array([1.0, -1.0] * 30)[:, None, None], "test": values}
    (row,) = probes.probe_layers("digit", "x", features, {"train": split, "test": split}, "label")
    assert (row["low"], row["accuracy"], row["high"]) == (0.0, 0.5, 1.0)
    better = {**row, "layer": 1, "accuracy": 0.9, "train_accuracy": 0.1}
    titles = []
    monkeypatch.setattr(
        probes.Figure, "savefig", lambda figure, path: titles.extend(a.get_title("left") for a in figure.axes)
    )
    rows = [{**of_layer, "task": task} for task in probes.TASKS for of_layer in (row, better)]
    probes.draw(rows, tmp_path / "figure.png")
    assert titles[0] == "digit: 0.50, x, layer 0 (best on train)"
