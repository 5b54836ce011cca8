"""The tokens that CTC exits classify: characters in fairseq's form, SentencePiece pieces, or phones."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from daisy.errors import CheckpointError, UsageError

SPACE = "|"
"""The token between words, among characters (fairseq's letters)."""
WORD_START = "\u2581"
"""Marks a piece that begins a word, in SentencePiece."""
FAIRSEQ_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
"""The first symbols of fairseq's dictionaries; the first of these is the CTC blank."""
SPECIAL = re.compile(r"<[^<>]+>|\[(?:PAD|UNK)\]")
"""Symbols that are not text: those of fairseq, SentencePiece and many fine-tuned models on Hugging Face."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The symbols of a recogniser's outputs.

    Example:
        >>> from daisy.models import Tokens
        >>> tokens = Tokens.characters("ABC")
        >>> tokens.symbols
        ('<s>', '<pad>', '</s>', '<unk>', '|', 'A', 'B', 'C')
        >>> tokens.encode("CAB A"), tokens.to_text([7, 5, 6, 4, 5])
        ([7, 5, 6, 4, 5], 'CAB A')
    """

    symbols: tuple[str, ...]
    """The symbol of each of the V outputs; those like <s> and [UNK] are not text."""
    blank: int = 0
    """Index of the CTC blank."""
    sentencepiece: bytes | None = None
    """The SentencePiece model of the pieces; None: characters, phones, or pieces without their model."""

    def __post_init__(self) -> None:
        if not self.symbols or not all(isinstance(symbol, str) and symbol for symbol in self.symbols):
            raise CheckpointError("tokens: symbols must be texts, at least one")
        if len(set(self.symbols)) < len(self.symbols):
            raise CheckpointError("tokens: a symbol stands there twice")
        is_whole = isinstance(self.blank, int) and not isinstance(self.blank, bool)
        if not is_whole or not 0 <= self.blank < len(self.symbols):
            raise CheckpointError(f"tokens: blank must be one of {len(self.symbols)} symbols, found {self.blank!r}")

    @classmethod
    def characters(cls, characters: Iterable[str]) -> Tokens:
        """Make the tokens of a fairseq dictionary of letters: its specials, then | and the characters."""
        rest = [character for character in dict.fromkeys(characters) if character not in (SPACE, " ")]
        return cls(symbols=(*FAIRSEQ_SPECIALS, SPACE, *rest))

    @classmethod
    def from_sentencepiece(cls, model: bytes) -> Tokens:
        """Make the tokens of a SentencePiece model, as in the public code of Wright et al.: the first is the blank.

        Raises:
            UsageError: where the package sentencepiece is missing.
            CheckpointError: where the bytes are not such a model.
        """
        processor = load_sentencepiece(model)
        symbols = tuple(processor.id_to_piece(index) for index in range(processor.get_piece_size()))
        return cls(symbols=symbols, blank=0, sentencepiece=model)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Tokens:
        """Make tokens from the values of `to_dict`, also after a round trip through JSON.

        Raises:
            CheckpointError: where the values are damaged.
        """
        try:
            model = values.get("sentencepiece")
            return cls(
                symbols=tuple(values["symbols"]),
                blank=values["blank"],
                sentencepiece=None if model is None else base64.b64decode(model, validate=True),
            )
        except (KeyError, TypeError, ValueError, AttributeError, binascii.Error):
            raise CheckpointError("damaged configuration (tokens); get the file again") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the values for a checkpoint's metadata."""
        model = self.sentencepiece
        return {
            "symbols": list(self.symbols),
            "blank": self.blank,
            "sentencepiece": None if model is None else base64.b64encode(model).decode("ascii"),
        }

    def __len__(self) -> int:
        return len(self.symbols)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The output of each symbol."""
        return {symbol: number for number, symbol in enumerate(self.symbols)}

    def is_special(self, token: int) -> bool:
        """Tell whether a token is not text: the blank, <s> and the like."""
        return token == self.blank or SPECIAL.fullmatch(self.symbols[token]) is not None

    @cached_property
    def are_pieces(self) -> bool:
        """Whether the tokens are pieces of words, in which ▁ marks where words begin."""
        return any(symbol.startswith(WORD_START) for symbol in self.symbols)

    @cached_property
    def are_phones(self) -> bool:
        """Whether no token marks where words begin, and some have several characters; each token is then a word.

        They are written with spaces between them, as in transformers' ``Wav2Vec2PhonemeCTCTokenizer``, and in fairseq
        where labels are neither letters nor pieces.
        """
        has_spaces = self.are_pieces or any(symbol.startswith(SPACE) for symbol in self.symbols)
        return not has_spaces and any(len(self.spell(token)) > 1 for token in range(len(self)))

    def starts_word(self, token: int) -> bool:
        """Tell whether a token begins a word, or is the space before one."""
        return self.are_phones or self.symbols[token].startswith((SPACE, WORD_START))

    def spell(self, token: int) -> str:
        """Return the characters of a token, without any space or mark of a word's start; none for a special token."""
        return "" if self.is_special(token) else self.symbols[token].replace(WORD_START, "").replace(SPACE, "")

    def to_text(self, tokens: Sequence[int]) -> str:
        """Write tokens as text: words with one space between them."""
        text = "".join((" " if self.starts_word(token) else "") + self.spell(token) for token in tokens)
        return " ".join(text.split())

    def fold(self, text: str) -> str:
        """Convert a text to the tokens' case, if they have only one, so that references compare with hypotheses."""
        letters = "".join(self.spell(token) for token in range(len(self)))
        if letters == letters.upper():
            return text.upper()
        return text.lower() if letters == letters.lower() else text

    def encode(self, text: str) -> list[int]:
        """Turn a text into tokens.

        Args:
            text: words, or phones, with spaces between them, in the case of the tokens.

        Raises:
            UsageError: on a character without a token, or where pieces are needed without the package
                sentencepiece or without their model.
        """
        if self.sentencepiece is not None:
            symbols = self._processor.encode(text, out_type=str)
        elif self.are_pieces:
            raise UsageError("pieces of words without their SentencePiece model: it tells which pieces a text is of")
        else:
            symbols = text.split() if self.are_phones else list(SPACE.join(text.split()))
        if unknown := sorted(set(symbols) - set(self.symbols)):
            raise UsageError(f"no tokens for {' '.join(unknown)} in {text!r}")
        return [self.numbers[symbol] for symbol in symbols]

    def list_pieces(self) -> list[str]:
        """Return the SentencePiece model's pieces, without those that are not text; none for characters."""
        if self.sentencepiece is None:
            return []
        pieces = [self._processor.id_to_piece(number) for number in range(self._processor.get_piece_size())]
        return [piece for piece in pieces if not SPECIAL.fullmatch(piece)]

    @cached_property
    def _processor(self) -> Any:
        assert self.sentencepiece is not None
        return load_sentencepiece(self.sentencepiece)


def load_sentencepiece(model: bytes) -> Any:
    """Load a SentencePiece model.

    Raises:
        UsageError: where the package is missing.
        CheckpointError: where the bytes are not a model.
    """
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise UsageError("pieces of words need the package sentencepiece", remedy="recognition") from None
    try:
        return SentencePieceProcessor(model_proto=model)
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f"not a SentencePiece model ({str(error).splitlines()[0]})") from None
