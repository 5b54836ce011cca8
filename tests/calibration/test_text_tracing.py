"""Full runs of recognisers, against single runs and against jiwer."""

import dataclasses

import pytest
import torch

from daisy import CheckpointError, policies
from daisy.calibration import guarantee, text_tracing
from daisy.calibration.families import fit_family
from daisy.calibration.kept_runs import KeptRuns
from daisy.calibration.text_tracing import TextTask, choose_unit_scores, pack_texts, trace_texts, unpack_texts
from daisy.calibration.traces import read_traces, write_traces
from daisy.evaluation.comparison import evaluate, find_best_exits, list_families
from daisy.policies.texts import edit_distance
from daisy.recognition import Recogniser, measure_error_rates
from tests.recognition.conftest import run_fully, tiny_recogniser

NAMES = list("abcdef")
REFERENCES = ["A", "AB C", "DA", "B A D", "", "ACE BE"]


@pytest.fixture(scope="module")
def speech():
    generator = torch.Generator().manual_seed(9)
    return [0.1 * torch.randn(n, generator=generator) for n in (960, 1600, 5000, 16000, 16640, 24000)]


@pytest.fixture(scope="module")
def model():
    """All exits write something, each something else."""
    made = tiny_recogniser("hubert", units=True)
    with torch.no_grad():
        for classifier in made.ctc.classifiers.values():
            classifier.bias.zero_()
            classifier.bias[[0, 2, 3]] -= 3  # blank, </s>, <unk>
            classifier.bias[4] -= 1
    return made


@pytest.fixture(scope="module")
def traced(model, speech):
    return trace_texts(model, speech, NAMES, list("xxyyzz"), task=TextTask(references=REFERENCES, with_units=True))


def read_at(model, speech, layer):
    return [transcript.text for transcript in Recogniser(model, policies.Fixed(layer=layer))(speech)]


def test_losses_against_their_definition(model, speech, traced):
    table, last = traced
    texts = [read_at(model, speech, number) for number in (1, 2, 3)]
    assert table.layers == (2, 3, 4)
    assert table.groups == tuple("xxyyzz")
    assert last == texts[2]
    assert len({tuple(of_exit) for of_exit in texts}) == 3
    for column, of_exit in enumerate(texts):
        for row, text in enumerate(of_exit):
            distance = edit_distance(text, last[row]) / max(len(last[row]), 1)
            assert table.losses["text_disagreement"][row, column] == pytest.approx(distance)
            errors = edit_distance(text.split(), REFERENCES[row].split()) / max(len(REFERENCES[row].split()), 1)
            assert table.losses["word_errors"][row, column] == pytest.approx(errors)
    assert (table.losses["text_disagreement"][:, -1] == 0).all()
    assert table.scores["final_agreement"][:, -1].tolist() == [1.0] * 6
    assert table.weights_by_loss["word_errors"].tolist() == [1, 2, 1, 3, 1, 2]
    assert table.weights_by_loss["character_errors"].tolist() == [1, 4, 2, 5, 1, 6]


def test_errors_are_summed_before_they_are_divided(model, speech, traced):
    """What a fixed exit costs is jiwer's word error rate of the set, and no mean over utterances."""
    pytest.importorskip("jiwer")
    rows = [0, 1, 2, 3, 5]  # an empty reference counts as one word here
    table = traced[0].select(rows)
    evaluation = evaluate("fixed", torch.full((5,), 2), table)
    rates = measure_error_rates([REFERENCES[row] for row in rows], [read_at(model, speech, 2)[row] for row in rows])
    assert evaluation.losses["word_errors"].mean == pytest.approx(rates.wer, rel=1e-6)
    assert evaluation.losses["character_errors"].mean == pytest.approx(rates.cer, rel=1e-6)
    assert rates.wer != pytest.approx(float(table.losses["word_errors"][:, 1].mean()))
    worst = find_best_exits(table, 1.0, "word_errors")
    best = table.losses["word_errors"].gather(1, worst[:, None] - 1)[:, 0]
    assert torch.equal(best, table.losses["word_errors"].amin(1))


def test_scores_are_those_of_full_runs(model, speech, traced):
    table = traced[0]
    for heads, prefix in (("ctc", ""), ("units", "unit_")):
        full, _ = run_fully(model, speech, ("entropy", "change"), heads=heads)
        for name in ("entropy", "change"):
            torch.testing.assert_close(table.scores[prefix + name], full.scores[name], equal_nan=True)
    assert "posterior" not in table.scores
    units = choose_unit_scores(table)
    assert torch.equal(units.scores["entropy"], table.scores["unit_entropy"])
    assert not set(units.scores) & {"unit_entropy", "sentence_confidence"}


def test_noisy_versions_are_compared_with_the_clean_text(model, speech, traced):
    wanted = ["ABBA", *traced[1][1:]]
    table, _ = trace_texts(model, speech, NAMES, task=TextTask(), reference=wanted)
    assert set(table.losses) == {"text_disagreement", "clean_text_disagreement"}
    first = [edit_distance(text, "ABBA") / 4 for text in (read_at(model, speech[:1], n)[0] for n in (1, 2, 3))]
    assert table.losses["clean_text_disagreement"][0].tolist() == pytest.approx(first)
    assert torch.equal(table.losses["clean_text_disagreement"][1:], table.losses["text_disagreement"][1:])


def test_kept_runs_give_the_same_without_running(model, speech, traced, tmp_path, monkeypatch):
    task = TextTask(references=REFERENCES, with_units=True)
    with KeptRuns(tmp_path / "runs", {}) as kept:
        trace_texts(model, speech, NAMES, list("xxyyzz"), task=task, kept=kept, batch_sec=1.0)
    monkeypatch.setattr(text_tracing, "_run", None)
    with KeptRuns(tmp_path / "runs", {}) as kept:
        again, last = trace_texts(model, speech, NAMES, list("xxyyzz"), task=task, kept=kept, batch_sec=1.0)
    assert last == traced[1]
    for name, values in traced[0].losses.items():
        assert torch.equal(again.losses[name], values)


def test_texts_are_packed_whole():
    texts = [[3, 4], [], [5], []]
    assert unpack_texts(pack_texts(texts)) == texts


def test_tables_hold_counts_and_what_they_are_among(traced, tmp_path):
    write_traces(traced[0], tmp_path / "traces.csv")
    header, first = (tmp_path / "traces.csv").read_text().splitlines()[:2]
    line = dict(zip(header.split(","), first.split(","), strict=True))
    assert (line["words"], line["characters"], line["layer"]) == ("1", "1", "2")
    assert float(line["character_errors"]) == int(line["character_errors"])
    table = read_traces(tmp_path / "traces.csv")
    for name, values in traced[0].losses.items():
        torch.testing.assert_close(table.losses[name], values)
        torch.testing.assert_close(table.weights_of(name), traced[0].weights_of(name))
    assert table.layers == (2, 3, 4)


def test_risk_is_what_is_above_the_last_exits_errors():
    losses = torch.tensor([[0.9, 0.5, 0.6], [3.0, 0.0, 0.0], [0.2, 0.1, 0.5]])
    excess = guarantee.bound_losses(losses, 1.0, "character_errors")
    torch.testing.assert_close(excess, torch.tensor([[0.3, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert guarantee.bound_losses(losses, 1.0, "text_disagreement")[0].tolist() == pytest.approx([0.9, 0.5, 0.0])


@pytest.mark.parametrize("name", ["sentence_confidence", "text_patience", "entropy"])
def test_families_go_from_all_layers_to_the_first(traced, name):
    family = fit_family(name, traced[0], "character_errors")
    exits = [family.at(quantile).exit_layers(traced[0].scores) for quantile in (0, 0.5, 1)]
    assert exits[0].tolist() == [3] * 6
    assert exits[2].tolist() == ([2] * 6 if name == "text_patience" else [1] * 6)
    assert 1 < float(exits[1].float().mean()) < 3


def test_all_that_the_scores_allow_is_compared(traced):
    names = set(list_families(traced[0], "word_errors"))
    assert {"entropy", "plateau", "forecast", "text_patience", "sentence_confidence", "oracle", "fixed"} <= names
    assert {"unit_entropy", "unit_margin", "unit_regressed"} <= names
    assert not names & {"unit_change", "change", "posterior", "draw"}


def test_exits_that_nothing_stands_before_are_never_left(traced):
    """Of two exits, the first has no text before it to compare its own with."""
    table = traced[0]
    two = dataclasses.replace(
        table,
        layers=(3, 4),
        costs=table.costs[1:],
        scores={"text_change": torch.stack([torch.full((6,), torch.nan), table.scores["text_change"][:, 2]], 1)},
        losses={name: values[:, 1:] for name, values in table.losses.items()},
    )
    assert fit_family("text_patience", two, "word_errors").at(1.0).exit_layers(two.scores).tolist() == [2] * 6


def test_models_without_what_is_asked_for_are_refused(speech):
    mute = tiny_recogniser("hubert")
    with pytest.raises(CheckpointError, match="no exit heads"):
        trace_texts(mute, speech[:1], ["a"], task=TextTask(with_units=True))
    with pytest.raises(ValueError, match="1 references for 2 utterances"):
        trace_texts(mute, speech[:2], ["a", "b"], task=TextTask(references=["A"]))
