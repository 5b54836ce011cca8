import math

import pytest
import torch

from daisy.models import Tokens
from daisy.recognition import BeamSearch, Hypothesis, decode_greedily, find_words
from daisy.recognition.decoding import Word

TOKENS = Tokens.characters("ABC")  # | is 4, A 5, B 6, C 7
PIECES = Tokens(symbols=("<unk>", "<s>", "</s>", "\u2581A", "B", "\u2581", "C"), sentencepiece=b"none is loaded")


def log_probs_of(path, num_tokens, sure=0.9):
    """Each frame's token has the probability ``sure``."""
    rest = (1 - sure) / (num_tokens - 1)
    probabilities = torch.full((len(path), num_tokens), rest)
    probabilities[torch.arange(len(path)), torch.tensor(path)] = sure
    return probabilities.log()


def test_greedy_decoding_takes_the_best_path():
    log_probs = log_probs_of([0, 5, 5, 0, 5, 4, 6, 0], 8)
    hypothesis = decode_greedily(log_probs)
    assert hypothesis.tokens == (5, 5, 4, 6)
    assert hypothesis.frames == (range(1, 3), range(4, 5), range(5, 6), range(6, 7))
    assert hypothesis.score == pytest.approx(8 * math.log(0.9), rel=1e-5)
    assert decode_greedily(log_probs_of([0, 0], 8)).tokens == ()
    assert decode_greedily(log_probs_of([3, 0, 3], 8), blank=3).tokens == (0,)


def test_words_have_times_and_confidence():
    path = [0, 4, 5, 5, 6, 0, 4, 4, 1, 7, 7, 0]  # a space before the first word, <pad> within the second
    log_probs = log_probs_of(path, 8)
    log_probs[4] = log_probs_of([6], 8, sure=0.3)[0]
    words = find_words(decode_greedily(log_probs), TOKENS, log_probs, 0.02)
    assert [word.text for word in words] == ["AB", "C"]
    assert [(word.start_sec, word.end_sec) for word in words] == [(0.04, 0.1), (0.18, 0.22)]
    assert [word.confidence for word in words] == pytest.approx([(0.9 * 0.9 * 0.3) ** (1 / 3), 0.9], rel=1e-5)


def test_pieces_begin_words():
    log_probs = log_probs_of([3, 4, 0, 5, 6, 3, 2], 7)
    words = find_words(decode_greedily(log_probs), PIECES, log_probs, 0.04)
    assert [word.text for word in words] == ["AB", "C", "A"]
    assert words[1] == Word(text="C", start_sec=0.16, end_sec=0.2, confidence=pytest.approx(0.9))


def test_a_lexicons_words_keep_their_spelling():
    log_probs = log_probs_of([5, 4, 6], 8)
    hypothesis = Hypothesis(tokens=(5, 4, 6), frames=(range(0, 1), range(1, 2), range(2, 3)), words=("a", "b"), score=0)
    assert [word.text for word in find_words(hypothesis, TOKENS, log_probs, 0.02)] == ["a", "b"]


@pytest.fixture
def ambiguous():
    """Three frames whose likeliest path is empty, and whose likeliest text is A."""
    frame = torch.tensor([[0.5, 0.0, 0.0, 0.0, 0.0, 0.4, 0.1, 0.0]]) + 1e-6
    return frame.log().repeat(3, 1)


def test_a_beam_finds_the_likeliest_text(ambiguous):
    pytest.importorskip("flashlight.lib.text")
    assert decode_greedily(ambiguous).tokens == ()
    hypothesis = BeamSearch(TOKENS)(ambiguous)
    assert hypothesis.tokens == (5,)
    # A, alone or repeated without a gap, in three frames
    paths = 3 * 0.4 * 0.5**2 + 2 * 0.4**2 * 0.5 + 0.4**3
    assert hypothesis.score == pytest.approx(math.log(paths), abs=1e-3)


def test_a_beam_tells_when_tokens_were_said():
    pytest.importorskip("flashlight.lib.text")
    path = [0, 5, 5, 0, 6, 4, 0, 7, 7]
    log_probs = log_probs_of(path, 8, sure=0.999)
    hypothesis, greedy = BeamSearch(TOKENS)(log_probs), decode_greedily(log_probs)
    assert hypothesis.tokens == greedy.tokens == (5, 6, 4, 7)
    assert hypothesis.frames == greedy.frames
    words = find_words(hypothesis, TOKENS, log_probs, 0.02)
    assert [(word.text, word.start_sec, word.end_sec) for word in words] == [("AB", 0.02, 0.1), ("C", 0.14, 0.18)]
    assert words == find_words(greedy, TOKENS, log_probs, 0.02)


def test_a_lexicon_allows_its_words_alone(tmp_path):
    pytest.importorskip("flashlight.lib.text")
    lexicon = tmp_path / "words.lex"
    lexicon.write_text("ab\tA B |\nCab C A B |\n", encoding="utf-8")
    search = BeamSearch(TOKENS, lexicon=lexicon)
    log_probs = log_probs_of([5, 7, 4, 0, 7, 5, 6, 4], 8, sure=0.6)
    hypothesis = search(log_probs)
    assert hypothesis.words == ("ab", "Cab")
    assert [word.text for word in find_words(hypothesis, TOKENS, log_probs, 0.02)] == ["ab", "Cab"]
    assert BeamSearch(TOKENS)(log_probs).words is None


def test_a_lexicons_unfinished_word_is_left_out(tmp_path):
    pytest.importorskip("flashlight.lib.text")
    lexicon = tmp_path / "words.lex"
    lexicon.write_text("ab\tA B |\ncab\tC A B |\n", encoding="utf-8")
    log_probs = log_probs_of([5, 6, 6, 4, 0, 7, 5, 0], 8, sure=0.999)  # it ends within cab
    hypothesis = BeamSearch(TOKENS, lexicon=lexicon, beam_size=1)(log_probs)
    assert (hypothesis.words, hypothesis.tokens) == (("ab",), (5, 6, 4))
    assert hypothesis.frames == (range(1), range(1, 3), range(3, 4))
    assert [word.text for word in find_words(hypothesis, TOKENS, log_probs, 0.02)] == ["ab"]


def test_weights_that_are_no_numbers_are_refused():
    pytest.importorskip("flashlight.lib.text")
    with pytest.raises(ValueError, match="weights must be numbers, found language_weight 2.0, word_score nan"):
        BeamSearch(TOKENS, word_score=math.nan)


def test_a_language_model_chooses_between_words_that_sound_the_same(tmp_path):
    pytest.importorskip("flashlight.lib.text")
    lexicon, model = tmp_path / "words.lex", tmp_path / "words.arpa"
    lexicon.write_text("heir\tA B |\nair\tA B |\n", encoding="utf-8")
    lines = ["\\data\\", "ngram 1=5", "ngram 2=1", "", "\\1-grams:", "-1\t<unk>\t0", "-99\t<s>\t0", "-1\t</s>\t0"]
    log_probs = log_probs_of([5, 0, 6, 4], 8)
    for likely, unlikely in (("air", "heir"), ("heir", "air")):
        model.write_text(
            "\n".join(
                [
                    *lines,
                    f"-0.2\t{likely}\t0",
                    f"-2\t{unlikely}\t0",
                    "",
                    "\\2-grams:",
                    "-1\t<s> </s>",
                    "",
                    "\\end\\",
                    "",
                ]
            )
        )
        assert BeamSearch(TOKENS, lexicon=lexicon, language_model=model)(log_probs).words == (likely,)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("ab A B\n", r"line 1, 'ab': a spelling is letters and ends with \|"),
        ("ab A B |\nd D |\n", r"line 2, 'd': 'D' is no token of this recogniser"),
        ("ab A | B |\n", r"line 1, 'ab': a spelling is letters and ends with \|"),
        ("ab A B |\nx <unk> |\n", "line 2, 'x': none of these tokens has a letter"),
        ("ab A B |\n\n", "line 2 is empty: take it out"),
        ("", "an empty lexicon"),
    ],
)
def test_lexicons_that_do_not_fit_are_refused(tmp_path, lines, message):
    pytest.importorskip("flashlight.lib.text")
    lexicon = tmp_path / "words.lex"
    lexicon.write_text(lines, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        BeamSearch(TOKENS, lexicon=lexicon)


def test_a_file_that_is_no_language_model_is_one_line(tmp_path):
    pytest.importorskip("flashlight.lib.text")
    (tmp_path / "words.arpa").write_text("words")
    with pytest.raises(ValueError, match=r"words.arpa: not a language model that KenLM reads \(.*\)$"):
        BeamSearch(TOKENS, language_model=tmp_path / "words.arpa")


def test_missing_files_are_named(tmp_path):
    pytest.importorskip("flashlight.lib.text")
    with pytest.raises(ValueError, match="gone.lex: No such file"):
        BeamSearch(TOKENS, lexicon=tmp_path / "gone.lex")
    with pytest.raises(ValueError, match="gone.bin: no such language model"):
        BeamSearch(TOKENS, language_model=tmp_path / "gone.bin")
