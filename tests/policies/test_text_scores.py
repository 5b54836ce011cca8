"""Scores of CTC exits, against their definitions."""

import math
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from daisy import CheckpointError, UsageError
from daisy.models import CTCHeads, CTCHeadsConfig, ExitHeads, HeadsConfig, PackedLayout
from daisy.policies import nbest
from daisy.policies.scores import OF_TEXT, SCORES, HeadOutputs, available_scores, to_nats_per_frame
from daisy.policies.texts import collapse, edit_distance

texts = st.lists(st.integers(0, 3), max_size=12)


def distance_by_table(first, second):
    """Levenshtein's table, cell by cell."""
    row = list(range(len(second) + 1))
    for i, one in enumerate(first, 1):
        before, row[0] = row[:], i
        for j, other in enumerate(second, 1):
            row[j] = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (one != other))
    return row[-1]


@given(texts, texts)
def test_edit_distance_is_levenshteins(first, second):
    assert edit_distance(first, second) == edit_distance(second, first) == distance_by_table(first, second)


def test_edit_distance_of_long_texts():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(0, 5, (n,), generator=generator).tolist() for n in (300, 170))
    assert edit_distance(first, second) == distance_by_table(first, second)


def test_paths_collapse_as_ctc_has_it():
    assert collapse([0, 0], 0) == []
    assert collapse([1, 1, 0, 1, 2, 2, 0], 0) == [1, 1, 2]
    assert collapse([1, 1, 0, 1, 2, 2, 0], 2) == [1, 0, 1, 0]


class Given:
    """Heads that give logits as they are."""

    config = CTCHeadsConfig(layers=(1, 2), width=4, num_tokens=4)

    def unit_logits(self, layer, features, layout=None):
        return features


def outputs(paths, before=None, stride=1):
    """Head outputs whose likeliest tokens are these, and those of the exit before."""
    layout = PackedLayout(torch.tensor([len(path) for path in paths]))
    best = torch.tensor([token for path in paths for token in path])
    logits = 3.0 * torch.nn.functional.one_hot(best, 4).float()
    previous = None if before is None else torch.tensor([token for path in before for token in path])
    return HeadOutputs(Given(), 2, logits, layout, previous, stride=stride)


def test_text_change_is_the_share_of_the_text_that_differs():
    now = [[1, 0, 2, 2], [0, 0, 0], [3, 3, 3, 0, 3], [1, 2]]
    before = [[1, 1, 0, 2], [0, 0, 0], [0, 3, 0, 0, 0], [0, 0]]
    change = SCORES["text_change"](outputs(now, before))
    assert change.tolist() == [0.0, 1.0, 0.5, 1.0]  # two empty texts do not agree
    assert SCORES["text_change"](outputs(now)).isnan().all()
    assert SCORES["change"](outputs(now, before)).tolist() == pytest.approx([0.5, 0.0, 0.6, 1.0])


def test_sentence_confidence_is_the_best_paths_log_probability_a_frame():
    given_outputs = outputs([[1, 2, 0], [3]])
    sure = 3 - math.log(math.exp(3) + 3)
    assert SCORES["sentence_confidence"](given_outputs).tolist() == pytest.approx([sure, sure])
    assert given_outputs.log_probs.shape == (4, 4)
    assert SCORES["confidence"](given_outputs).tolist() == pytest.approx([math.exp(sure)] * 2)


def test_scores_of_text_are_of_ctc_exits_alone():
    units = ExitHeads(HeadsConfig(num_layers=2, width=4, num_units=4))
    ctc = CTCHeads(Given.config)
    assert set(SCORES) - available_scores(units) == OF_TEXT
    assert set(SCORES) - available_scores(ctc) == {"regressed"}
    layout = PackedLayout(torch.tensor([2]))
    with pytest.raises(CheckpointError, match="predict units, and a score of text was asked for: it needs CTC exits"):
        SCORES["text_change"](HeadOutputs(units, 2, torch.zeros(2, 4), layout, torch.zeros(2)))
    with pytest.raises(CheckpointError, match="CTC exits have no loss regressors"):
        SCORES["regressed"](HeadOutputs(ctc, 2, torch.zeros(2, 4), layout))


def test_published_thresholds_are_converted():
    assert to_nats_per_frame(0.0035, 32) == pytest.approx(0.112)
    assert to_nats_per_frame(-0.0035, 256) == pytest.approx(0.896)


def test_the_posterior_is_a_softmax_over_whole_texts():
    """Against all paths of three frames: texts with their summed probabilities, all of which the beam holds."""
    pytest.importorskip("flashlight.lib.text")
    generator = torch.Generator().manual_seed(1)
    log_probs = torch.randn(3, 3, generator=generator).log_softmax(-1)
    sums = {}
    for path in torch.cartesian_prod(*[torch.arange(3)] * 3).tolist():
        text = tuple(collapse(path, 0))
        sums[text] = sums.get(text, 0.0) + math.exp(sum(float(log_probs[t, token]) for t, token in enumerate(path)))
    best = sorted(sums.values(), reverse=True)[: nbest.NUM_BEST]
    assert nbest.nbest_posterior(log_probs, 0) == pytest.approx(best[0] / sum(best), rel=1e-4)
    sure = outputs([[1, 0, 2]])
    sure.log_probs = 20 * sure.log_probs
    assert float(SCORES["posterior"](sure)) > 0.999 > float(SCORES["posterior"](outputs([[1, 0, 2]])))


def test_a_missing_decoder_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio.models.decoder", None)
    nbest._make_decoder.cache_clear()
    with pytest.raises(
        UsageError, match=r"beam search needs torchaudio and flashlight-text .*daisy-speech\[recognition"
    ):
        SCORES["posterior"](outputs([[1, 0, 2]]))
