"""Read files with the tokens of a recogniser's outputs, and match them to output layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from daisy.checkpoints.converters.mapping import Config
from daisy.errors import CheckpointError, UsageError
from daisy.models import Tokens
from daisy.models.tokens import FAIRSEQ_SPECIALS, SPACE

KINDS = "dict.ltr.txt of fairseq, vocab.json of Hugging Face, or a SentencePiece .model"


def read_token_file(path: str | Path) -> Tokens:
    """Read tokens from one of the files that recognisers come with.

    Args:
        path: path of fairseq's dictionary (``.txt``), Hugging Face's ``vocab.json``, or a SentencePiece ``.model``,
            whose first piece is then the blank, as in the public code of Wright et al.

    Raises:
        UsageError: where the file cannot be read, or is none of these.
    """
    path = Path(path)
    try:
        if path.suffix == ".json":
            return make_from_vocabulary(json.loads(path.read_text(encoding="utf-8")))
        if path.suffix == ".txt":
            return make_from_dictionary(path.read_text(encoding="utf-8"))
        if path.suffix == ".model":
            return Tokens.from_sentencepiece(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except CheckpointError as error:
        raise UsageError(f"{path}: {error.message}") from None
    except ValueError as error:
        raise UsageError(f"{path}: damaged ({error})") from None
    raise UsageError(f"{path}: tokens come from {KINDS}")


def make_from_dictionary(content: str) -> Tokens:
    """Make tokens from a fairseq dictionary: its special symbols, then those of lines with a symbol and a count.

    Source: fairseq 0.12.2, fairseq/data/dictionary.py (``Dictionary.add_from_file``).
    """
    lines = [line.removesuffix(" #fairseq:overwrite").rsplit(" ", 1) for line in content.splitlines() if line.strip()]
    if not lines or not all(len(line) == 2 and line[1].isdecimal() for line in lines):
        raise CheckpointError("not a dictionary of fairseq's: lines of a symbol and a count")
    return Tokens(symbols=(*FAIRSEQ_SPECIALS, *(symbol for symbol, _ in lines)))


def make_from_vocabulary(
    numbers: Any, num_outputs: int | None = None, *, blank: int | None = None, delimiter: str = SPACE
) -> Tokens:
    """Make tokens from Hugging Face's vocabulary, which has each symbol's number.

    Args:
        numbers: content of ``vocab.json``.
        num_outputs: outputs of the layer, some of which may have no symbol in the vocabulary; None: as many
            as there are symbols.
        blank: index of the CTC blank; None: that of ``<pad>`` or ``[PAD]``.
        delimiter: symbol between words; it becomes |, as a space does.

    Source: transformers 4.57, transformers/models/wav2vec2/tokenization_wav2vec2.py.

    Raises:
        CheckpointError: where this is not a vocabulary, has a number beyond the outputs, or has no blank.
    """
    if not isinstance(numbers, dict) or not all(type(number) is int and number >= 0 for number in numbers.values()):
        raise CheckpointError("not a vocabulary of Hugging Face's: each symbol's number, from 0 on")
    symbols = {number: symbol for symbol, number in numbers.items()}
    beyond = [number for number in symbols if num_outputs is not None and number >= num_outputs]
    if beyond:
        raise CheckpointError(f"has a token of number {beyond[0]}, and there are {num_outputs} outputs")
    if len(symbols) < len(numbers) or (num_outputs is None and max(symbols, default=-1) >= len(symbols)):
        raise CheckpointError("not a vocabulary of Hugging Face's: each symbol's number, from 0 on")
    if blank is None:
        blank = next((numbers[pad] for pad in ("<pad>", "[PAD]") if pad in numbers), None)
    if blank is None:
        raise CheckpointError("its vocabulary has neither <pad> nor [PAD], which would be CTC's blank")
    for space in (delimiter, " "):
        if space in numbers and SPACE not in symbols.values():
            symbols[numbers[space]] = SPACE
    count = len(symbols) if num_outputs is None else num_outputs
    return Tokens(symbols=tuple(symbols.get(number, f"<{number}>") for number in range(count)), blank=blank)


def fit_tokens(num_outputs: int, given: Tokens | None, found: Tokens | None = None) -> Tokens | None:
    """Choose the tokens of an output layer: the given ones, else those found with the checkpoint, if they fit.

    Args:
        num_outputs: number of outputs of the layer, V.
        given: tokens given by the user.
        found: tokens found in the checkpoint, or beside it.

    Raises:
        CheckpointError: where the number of given tokens is not that of the layer's outputs.
    """
    if given is not None and len(given) != num_outputs:
        raise CheckpointError(f"its output layer has {num_outputs} tokens, and the file of tokens {len(given)}")
    chosen = given or found
    return chosen if chosen is not None and len(chosen) == num_outputs else None


def make_exits_config(layers: list[int], output: Tensor, tokens: Tokens) -> Config:
    """Make the part of `Model.config` that describes linear CTC exits."""
    return {
        "ctc": {
            "layers": layers,
            "width": output.shape[1],
            "num_tokens": output.shape[0],
            "blank": tokens.blank,
        },
        "tokens": tokens.to_dict(),
    }
