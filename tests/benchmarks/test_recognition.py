import dataclasses
import math

import numpy
import pytest
import torch
from scipy.stats import spearmanr

from benchmarks.recognition import errors, guarantee, policies, scores, systems, tables, train
from benchmarks.recognition.corpora import CORPORA, find_sets, write_manifests
from benchmarks.shared import results
from benchmarks.shared.recordings import DATA
from daisy.calibration.intervals import Resample
from daisy.calibration.traces import Traces
from daisy.errors import OutputError, UsageError

EXITS = (2, 4, 6)
TIMES = torch.tensor([0.4, 0.8, 1.1])


def make_traces(num=6, num_speakers=3):
    """Every second recording is read rightly at the first exit; the others, twice as long, at the last alone."""
    is_easy = torch.arange(num) % 2 == 0
    wrong = torch.where(is_easy[:, None], torch.tensor([[0.0, 0, 0]]), torch.tensor([[1.0, 0.5, 0]]))
    words, characters = torch.where(is_easy, 1.0, 3.0), torch.where(is_easy, 2.0, 4.0)
    return Traces(
        utterances=tuple(f"an4/{index}" for index in range(num)),
        groups=tuple(f"speaker{index % num_speakers}" for index in range(num)),
        conditions=("clean",) * num,
        scores={"entropy": torch.where(is_easy[:, None], 0.1, torch.tensor([[0.9, 0.9, 0.1]]))},
        losses={"word_errors": (2 * wrong).clamp(max=1), "character_errors": wrong, "text_disagreement": wrong},
        weights=torch.ones(num),
        costs=torch.tensor(EXITS).float(),
        layers=EXITS,
        weights_by_loss={"word_errors": words, "character_errors": characters},
    )


def measure_frontier(runs, *names, heads="ctc"):
    return policies.measure_frontier(runs, runs, dict.fromkeys(names, TIMES), TIMES, heads)


def test_error_rates_are_those_of_the_corpus_at_every_exit():
    rows = errors.measure_exits(make_traces(), draws=50)
    assert [row["exit_layer"] for row in rows] == [2, 4, 6]
    assert [row["cer"] for row in rows] == pytest.approx([12 / 18, 6 / 18, 0])
    assert [row["wer"] for row in rows] == pytest.approx([9 / 12, 9 / 12, 0])
    assert all(row["wer_low"] <= row["wer"] <= row["wer_high"] for row in rows)


def test_one_speaker_has_no_interval():
    rows = errors.measure_exits(make_traces(num_speakers=1), draws=50)
    assert {(row["cer_low"], row["wer_high"]) for row in rows} == {(None, None)}
    assert tables._format_errors(rows[0]) == "0.750, 0.667"


def test_policies_stand_beside_the_cut_and_chance_of_their_depth():
    runs = make_traces()
    (row,) = (row for row in measure_frontier(runs, "entropy") if row["target_depth"] == 0.7)
    assert row["policy"] == "entropy"
    assert row["exit_layer"] == 4.0  # half of the recordings leave at layer 2, those with two thirds of the text at 6
    assert row["depth"] == pytest.approx((2 / 6 + 2) / 3)
    assert row["time"] == pytest.approx((0.4 + 2 * 1.1) / 3)
    assert (row["cer"], row["cer_static"]) == (0.0, pytest.approx((12 / 18) / 3))
    assert row["cer_random"] == pytest.approx((12 / 18) / 3)
    assert row["cer_mixture"] == pytest.approx((12 / 18) / 3)  # of layers 2 and 6, as of 4 and 6
    assert row["cer_static_at_time"] == pytest.approx((6 / 18) * (1.1 - (0.4 + 2 * 1.1) / 3) / (1.1 - 0.8))
    row, *_ = measure_frontier(runs, "hindsight", heads="units")
    assert row["policy"] == "DAISY: hindsight"


def test_certified_error_rates_are_kept_on_other_speakers():
    num = 400
    pool = make_traces(num, num_speakers=num)
    rows = guarantee.summarise("x", "character_errors", pool, [guarantee.measure_split(pool, "character_errors", 0)])
    by_target = {row["target"]: row for row in rows}
    assert by_target[0.1]["none_certified"] == 0.0
    assert by_target[0.1]["depth"] == pytest.approx(4 / 6, abs=0.05)  # the hard half goes to the end
    assert all(row["violations"] == 0 and row["speakers"] == num for row in rows)
    assert {row["certifying"] for row in rows} == {133}
    assert {row["least_target"] for row in rows} == {guarantee.find_least_target(133)}


def test_few_speakers_certify_little():
    """None of n speakers has a loss: no test can exclude that a share 1 - delta^(1 / n) of all have one."""
    for count in (6, 29, 154):
        least, bound = guarantee.find_least_target(count), 1 - guarantee.DELTA ** (1 / count)
        assert bound < least < 1.5 * bound + 0.005


def test_rank_correlations_are_spearmans_and_their_intervals_resample_speakers():
    one, other = numpy.random.default_rng(0).integers(0, 9, size=(2, 60)).astype(float)
    other = one + other
    groups = [str(index // 4) for index in range(60)]
    estimate = scores.correlate_ranks(one, other, Resample(groups, 400))
    assert estimate.mean == pytest.approx(spearmanr(one, other).statistic)
    assert estimate.low < estimate.mean - 0.05 < estimate.mean + 0.05 < estimate.high < 1
    alike = scores.correlate_ranks(one, other, Resample(["one"] * 60, 50))
    assert alike.low == pytest.approx(alike.high) == pytest.approx(estimate.mean)


def test_scores_tell_of_errors_and_of_errors_saved(tmp_path, monkeypatch):
    """Each score is turned so that higher should mean more errors; two of these four mean fewer."""
    runs = make_traces(12)
    wrong = torch.linspace(0.1, 0.9, 12)[:, None]
    values = {"entropy": wrong, "confidence": wrong, "sentence_confidence": -wrong, "text_change": 1 - wrong}
    runs = dataclasses.replace(
        runs,
        layers=(4, 8, 12),
        scores={name: value.expand(-1, 3) for name, value in values.items()},
        losses={"character_errors": torch.cat([wrong, wrong / 2, torch.zeros_like(wrong)], 1)},
    )
    rows = scores.measure_scores(runs, draws=50)
    assert [row["exit_layer"] for row in rows] == [4, 8] * 4
    assert {row["score"]: round(row["errors"], 6) for row in rows} == {
        "entropy": 1, "confidence": -1, "sentence_confidence": 1, "text_change": -1,
    }  # fmt: skip
    assert all(row["saved"] == pytest.approx(row["errors"]) for row in rows)
    saves_nothing = dataclasses.replace(runs, losses={"character_errors": torch.cat([wrong, wrong, 2 * wrong], 1)})
    assert scores.measure_scores(saves_nothing, draws=50)[0]["saved"] == pytest.approx(-1)
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    results.write_result("early_exit_asr_scores", [{"system": "x", **row} for row in rows])
    lines = tables.TABLES["asr_scores"]().splitlines()
    assert lines[0].endswith("| exit 4: with its errors | exit 4: with errors saved | exit 8: with its errors | "
                             "exit 8: with errors saved |")  # fmt: skip
    assert lines[2].startswith("| x | entropy | +1.00 (+1.00 to +1.00) | +1.00 (")


def test_tables_have_the_exits_and_the_policies_nearest_to_60_percent(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    runs = make_traces()
    fields = {"system": "x", "set": "all", "condition": "clean", "num_utterances": 6, "parameters": 4_700_000}
    rows = [{**fields, **row} for row in errors.measure_exits(runs, draws=50)]
    results.write_result("early_exit_asr", rows)
    line = tables.TABLES["asr_exits"]().splitlines()[2]
    assert line == "| x | 4.7 M | 0.667 | 0.333 | 0.000 |  |  |  |"
    rows = [{"system": "x", **row} for row in measure_frontier(runs, "entropy")]
    results.write_result("early_exit_asr_policies", rows)
    (line,) = tables.TABLES["asr_policies"]().splitlines()[2:3]
    assert line.startswith("| x | entropy | 78% | 87% | 0.0000 | 0.2222 | 0.2222 | 0.2222 | 0.2593 | +0.2222 (")
    with pytest.raises(UsageError, match="no rows of DAISY: entropy, DAISY: forecast"):
        policies.draw(rows)


def test_tables_of_sets_and_of_the_guarantee(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    fields = {"system": "x", "condition": "clean", "num_utterances": 6, "parameters": 4_700_000}
    rows = []
    for name, num_speakers in (("all", 3), ("an4", 3), ("robotutor", 1)):
        rows += [{**fields, "set": name, **r} for r in errors.measure_exits(make_traces(12, num_speakers), draws=50)]
    results.write_result("early_exit_asr", rows)
    header, _, line, *_ = tables.TABLES["asr_sets"]().splitlines()
    assert header == "| recogniser | an4: WER, CER | robotutor: WER, CER |"
    assert line == "| x | 0.000 (0.000-0.000), 0.000 (0.000-0.000) | 0.000, 0.000 |"
    pool = make_traces(400, num_speakers=400)
    splits = [guarantee.measure_split(pool, "character_errors", 0)]
    results.write_result("early_exit_asr_guarantee", guarantee.summarise("x", "character_errors", pool, splits))
    lines = tables.TABLES["asr_guarantee"]().splitlines()[2:7]
    assert [line.split(" | ")[4] for line in lines] == ["0.02", "0.05", "0.10", "0.30", "0.40"]
    assert lines[0].startswith("| x | character_errors | 133 | 0.03 | 0.02 | 0.000 | 0.000 | 1.000 | 1.000 |")


def test_the_figure_has_errors_against_depth_and_time(tmp_path):
    runs = make_traces()
    rows = [{"system": "x", **row} for row in measure_frontier(runs, "forecast", "fixed", "entropy")]
    figure = policies.make_figure(rows, "x")
    for axes, field in zip(figure.axes, ("depth", "time"), strict=True):
        (line,) = (line for line in axes.lines if line.get_label() == "entropy")
        shown = [row for row in rows if (row["policy"], row["condition"]) == ("entropy", policies.ALL_CONDITIONS)]
        assert line.get_xdata().tolist() == [row[field] for row in shown]
        assert line.get_ydata().tolist() == [row["cer"] for row in shown]
        assert axes.get_title("left").startswith("At ")


def test_two_stages_come_one_after_the_other():
    assert systems.list_ancestors("daisy-mini, two-stage") == ["daisy-mini, one exit", "daisy-mini, two-stage"]
    assert all(system.corpus in CORPORA for system in systems.SYSTEMS.values())
    assert len({train.find_model(name) for name in systems.SYSTEMS}) == len(systems.SYSTEMS)


def test_a_training_with_other_settings_is_not_gone_on_with(tmp_path):
    path = tmp_path / "x" / "settings.json"
    train.check_settings(path, {"updates": 5})
    train.check_settings(path, {"updates": 5})
    with pytest.raises(OutputError, match="was trained with"):
        train.check_settings(path, {"updates": 6})


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared recordings")
def test_manifests_list_what_has_a_text(tmp_path):
    write_manifests(CORPORA["english"], tmp_path)
    lines = (tmp_path / "train.tsv").read_text().splitlines()[1:]
    letters = (tmp_path / "train.ltr").read_text().splitlines()
    assert len(lines) == len(letters) == 234 + 133 + 843 + 1929 + 2220
    assert set(find_sets(lines)) == {"librispeech", "librispeech_more", "an4", "robotutor", "speechocean762"}
    hours = sum(int(line.split("\t")[1]) for line in lines) / 16000 / 3600
    assert hours == pytest.approx(5.46, abs=0.05)
    assert {symbol for line in letters for symbol in line.split()} <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ'|")


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared recordings")
@pytest.mark.filterwarnings("ignore")  # fairseq's
def test_a_recogniser_is_trained_run_and_judged(tmp_path):
    pytest.importorskip("fairseq")
    pytest.importorskip("jiwer")
    name = "Mboshi: Conformer, six exits"
    with pytest.raises(UsageError, match="not trained yet"):
        errors.measure_system(name, 2, tmp_path)
    model = train.train(name, folder=tmp_path, quick=True)
    before = model.stat().st_mtime_ns
    assert train.train(name, folder=tmp_path, quick=True).stat().st_mtime_ns == before
    rows = errors.measure_system(name, 2, tmp_path)
    assert {row["condition"] for row in rows} == {"clean", "recorded 20 dB", "recorded 10 dB", "recorded 0 dB"}
    assert {row["exit_layer"] for row in rows} == {2, 4, 6, 8, 10, 12}
    assert all(row["num_utterances"] == 2 and math.isfinite(row["wer"]) for row in rows)
    rows = policies.measure_system(name, 2, tmp_path)
    assert all(math.isfinite(row["cer"]) and 0 < row["time"] < 20 for row in rows)
    assert {row["policy"] for row in rows} >= {"fixed", "entropy", "text_patience", "forecast", "oracle", "hindsight"}
