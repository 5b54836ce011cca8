"""Read the output layers of Hugging Face's recognisers: ``HubertForCTC``, ``Wav2Vec2ForCTC``, and those with exits.

Source: transformers 4.57, modeling_hubert.py and modeling_wav2vec2.py, ``lm_head``; tokenization_wav2vec2.py,
``vocab.json``, whose pad token is the CTC blank. With exits: augustgw/wav2vec2-ee, train_utils.py, ``EEWav2Vec2ForCTC``
and kin, with six ``decoders`` at every second of twelve layers, which are one module under six names.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from daisy.checkpoints.converters.huggingface_folder import read_json
from daisy.checkpoints.converters.mapping import Config
from daisy.checkpoints.converters.token_files import fit_tokens, make_from_vocabulary
from daisy.errors import CheckpointError
from daisy.models import CTCHeadsConfig, Tokens
from daisy.models.tokens import SPACE

HEAD = re.compile(r"lm_head\.(weight|bias)|decoders\.(\d+)\.(weight|bias)")
WITH_EXITS = re.compile(r"(?:EE|KDEE|DKDEE|Confidence|ManualExitActivation\w*)Wav2Vec2ForCTC")
LAYERS_BETWEEN_EXITS = 2
LETTERS = "ETAONIHSRDLUMWCFGYPBVK'XJQZ"
"""Letters of facebook/wav2vec2-base's vocabulary, after its specials; the public code loads it by that name."""


def read_exits(
    state: Mapping[str, Tensor], config: Config, folder: Path, given: Tokens | None = None
) -> tuple[Config, dict[str, Tensor], str] | None:
    """Read CTC exits and their tokens.

    Args:
        state: weights by the source's names.
        config: content of config.json.
        folder: folder of the model, whose vocab.json has the tokens.
        given: tokens to use; None: those of vocab.json.

    Returns:
        "ctc" and "tokens" as in `Model.config`, the weights by our names, and the end of a message that says what was
        assumed; None where the model does not recognise speech, or its tokens are not known.

    Raises:
        CheckpointError: where the classifiers and the vocabulary do not match.
    """
    heads = {key: tensor for key, tensor in state.items() if HEAD.fullmatch(str(key))}
    weights = {key: tensor for key, tensor in heads.items() if key.endswith("weight")}
    if not weights or not _is_recogniser(config):
        return None
    num_tokens, width = next(iter(weights.values())).shape
    tokens, assumed = fit_tokens(num_tokens, given), ""
    if tokens is None:
        tokens, assumed = _read_tokens(config, folder, num_tokens)
    if tokens is None:
        return None
    layers = _find_layers(config, heads)
    exits = CTCHeadsConfig(layers=layers, width=width, num_tokens=num_tokens, blank=tokens.blank)
    tensors = {
        f"ctc.classifiers.{layer}.{name}": _take(heads, index, name).float()
        for index, layer in enumerate(layers)
        for name in ("weight", "bias")
    }
    return {"ctc": dataclasses.asdict(exits), "tokens": tokens.to_dict()}, tensors, assumed


def is_head(key: object) -> bool:
    """Tell whether a weight is one of those that `read_exits` reads."""
    return HEAD.fullmatch(str(key)) is not None


def _is_recogniser(config: Config) -> bool:
    names = config.get("architectures") or []
    return any(str(name).endswith("ForCTC") for name in names)


def _find_layers(config: Config, heads: Mapping[str, Tensor]) -> tuple[int, ...]:
    num_layers = int(config.get("num_hidden_layers", 12))
    has_exits = any(WITH_EXITS.fullmatch(str(name)) for name in config.get("architectures") or [])
    if not has_exits and not any(key.startswith("decoders.") for key in heads):
        return (num_layers,)
    if num_layers % LAYERS_BETWEEN_EXITS:
        raise CheckpointError(f"exits at every second of {num_layers} layers would leave none at the last")
    return tuple(range(LAYERS_BETWEEN_EXITS, num_layers + 1, LAYERS_BETWEEN_EXITS))


def _take(heads: Mapping[str, Tensor], index: int, name: str) -> Tensor:
    """Return an exit's own weights, or those of the shared module, which files may hold under only some names."""
    if (own := heads.get(f"decoders.{index}.{name}")) is not None:
        return own
    found = [tensor for key, tensor in heads.items() if key.endswith(name)]
    if not found or not all(torch.equal(found[0], other) for other in found):
        raise CheckpointError(f"has CTC classifiers without decoders.{index}.{name}")
    return found[0]


def _read_tokens(config: Config, folder: Path, num_tokens: int) -> tuple[Tokens | None, str]:
    """Read the tokens of vocab.json, or without it those that the public code loads; None where they are not known."""
    blank = config.get("pad_token_id", 0)
    if (folder / "vocab.json").is_file():
        numbers = read_json(folder / "vocab.json")
        try:
            tokens = make_from_vocabulary(numbers, num_tokens, blank=blank, delimiter=_read_delimiter(folder))
        except CheckpointError as error:
            raise CheckpointError(f"vocab.json: {error.message}") from None
        unnamed = num_tokens - len(numbers)
        return tokens, f"no text of {unnamed} outputs that vocab.json does not name" if unnamed else ""
    has_exits = any(WITH_EXITS.fullmatch(str(name)) for name in config.get("architectures") or [])
    symbols = ("<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS)
    if has_exits and len(symbols) == num_tokens:
        return Tokens(symbols=symbols, blank=blank), "the vocabulary of facebook/wav2vec2-base: there is no vocab.json"
    return None, ""


def _read_delimiter(folder: Path) -> str:
    """Read the symbol for which the tokenizer writes a space; | where it is not given."""
    path = folder / "tokenizer_config.json"
    delimiter = read_json(path).get("word_delimiter_token") if path.is_file() else None
    content = delimiter.get("content") if isinstance(delimiter, dict) else delimiter
    return content if isinstance(content, str) else SPACE
