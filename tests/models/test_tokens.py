import io
import json
import sys

import pytest

from daisy import CheckpointError, UsageError
from daisy.models import Tokens

TEXTS = ["the cat sat on the mat", "a dog ate the cat", "on that day the dog sat", "cats and dogs", "mats and hats"]


def make_pieces():
    """A SentencePiece model as the public code of Wright et al. has it: blank is its first piece, unknown."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20), model_writer=model, vocab_size=40, minloglevel=2, hard_vocab_limit=False
    )
    return Tokens.from_sentencepiece(model.getvalue())


@pytest.fixture(scope="module")
def pieces():
    return make_pieces()


def test_characters_stand_as_in_fairseqs_dictionaries():
    tokens = Tokens.characters("AB A'|")
    assert tokens.symbols == ("<s>", "<pad>", "</s>", "<unk>", "|", "A", "B", "'")
    assert (tokens.blank, len(tokens)) == (0, 8)
    assert tokens.encode(" BA  'B ") == [6, 5, 4, 7, 6]
    assert tokens.to_text([4, 6, 5, 4, 4, 7, 0, 2, 6]) == "BA 'B"
    with pytest.raises(UsageError, match="no tokens for C D in 'BAD CAB'"):
        tokens.encode("BAD CAB")


def test_texts_are_brought_to_the_tokens_case():
    assert Tokens.characters("AB").fold("aB") == "AB"
    assert Tokens.characters("ab").fold("aB") == "ab"
    assert Tokens.characters("aB").fold("aB") == "aB"


def test_brackets_of_special_symbols_make_no_text():
    tokens = Tokens(symbols=("a", "b", "|", "[UNK]", "[PAD]"), blank=4)
    assert tokens.to_text([0, 3, 1, 2, 1]) == "ab b"
    assert tokens.fold("Ab") == "ab"


def test_pieces_without_their_model_begin_words_too():
    tokens = Tokens(symbols=("<s>", "\u2581THE", "\u2581CAT", "S", "\u2581"))  # fairseq's dictionary, labels=spm
    assert tokens.to_text([1, 2, 3, 4, 3]) == "THE CATS S"
    with pytest.raises(UsageError, match="pieces of words without their SentencePiece model"):
        tokens.encode("CATS")


def test_phones_have_spaces_between_them():
    """Neither | nor a piece's mark, and symbols of several characters."""
    tokens = Tokens(symbols=("<pad>", "h", "\u0259", "l", "o\u028a", "<unk>"))
    assert tokens.to_text([1, 2, 3, 0, 4, 5]) == "h \u0259 l o\u028a"
    assert tokens.encode("h o\u028a") == [1, 4]
    assert Tokens(symbols=("<pad>", "h", "a")).to_text([1, 2]) == "ha"  # of a language that writes no spaces


def test_pieces_write_what_sentencepiece_writes(pieces):
    for text in TEXTS:
        numbers = pieces.encode(text)
        assert pieces.to_text(numbers) == text == pieces._processor.decode(numbers)
    assert [pieces.symbols[i] for i in range(3)] == ["<unk>", "<s>", "</s>"]
    assert [pieces.spell(i) for i in range(3)] == [""] * 3
    copy = Tokens.from_dict(json.loads(json.dumps(pieces.to_dict())))
    assert copy == pieces
    assert copy.encode("the cat") == pieces.encode("the cat")


def test_pieces_are_written_without_the_package(pieces, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    numbers = pieces.encode("the cat sat")
    copy = Tokens.from_dict(pieces.to_dict())
    assert copy.to_text(numbers) == "the cat sat"
    with pytest.raises(UsageError, match=r"need the package sentencepiece; pip install daisy-speech\[recognition\]"):
        copy.encode("the cat")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"symbols": [], "blank": 0}, "symbols must be texts, at least one"),
        ({"symbols": ["a", "a"], "blank": 0}, "a symbol stands there twice"),
        ({"symbols": ["a", "b"], "blank": 2}, "blank must be one of 2 symbols, found 2"),
        ({"blank": 0}, r"damaged configuration \(tokens\)"),
        ({"symbols": ["a"], "blank": 0, "sentencepiece": "?"}, r"damaged configuration \(tokens\)"),
    ],
)
def test_damaged_tokens_are_refused(values, message):
    with pytest.raises(CheckpointError, match=message):
        Tokens.from_dict(values)


def test_other_bytes_are_no_model():
    pytest.importorskip("sentencepiece")
    with pytest.raises(CheckpointError, match="not a SentencePiece model"):
        Tokens.from_sentencepiece(b"not a model")
