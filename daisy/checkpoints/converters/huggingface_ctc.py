"""The output layers of Hugging Face's CTC models: one at the end, or one that several exits share.

Source: transformers 4.57, ``HubertForCTC`` and ``Wav2Vec2ForCTC``; augustgw/wav2vec2-ee @8bea508, train_utils.py, whose
models put one ``lm_head`` on layers 2, 4 ... 12, and name it ``decoders.0`` to ``decoders.5`` too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from daisy.checkpoints.converters.huggingface_folder import read_json
from daisy.checkpoints.converters.mapping import Config
from daisy.checkpoints.converters.token_files import fit_tokens, make_exits_config, make_from_vocabulary
from daisy.errors import CheckpointError
from daisy.models import Tokens

OUTPUT = re.compile(r"(lm_head|decoders\.(\d+))\.weight")
WITH_EXITS = re.compile(r"(EE|KDEE|DKDEE|Confidence|ManualExitActivation(Confidence)?)Wav2Vec2ForCTC")
"""Names of that code's models, of which a file may hold the shared layer once only."""
NUM_EXITS, LAYERS_BETWEEN = 6, 2


def read_exits(
    state: dict[str, Any], config: Config, folder: Path, given: Tokens | None
) -> tuple[Config, dict[str, Tensor]]:
    """Take the output layers out of a model's weights.

    Args:
        state: its weights, from which they are removed where the model is to have exits.
        config: its ``config.json``.
        folder: with ``vocab.json``, perhaps.
        given: tokens; where None those of ``vocab.json``.

    Returns:
        The parts of `Model.config` that tell of exits, and their tensors under our names; nothing where there is no
        output layer, or no tokens for it.

    Raises:
        CheckpointError: where given tokens do not fit.
    """
    names = {key: match for key in state if (match := OUTPUT.fullmatch(str(key)))}
    if not names:
        return {}, {}
    first = next(iter(names))
    tokens = fit_tokens(state[first], given, None if given else _find_tokens(config, folder))
    if tokens is None:
        return {}, {}
    layers = _find_layers(names, config)
    outputs = {
        match[1]: [state.pop(f"{match[1]}.{part}").float() for part in ("weight", "bias")] for match in names.values()
    }
    shared = next(iter(outputs.values()))
    tensors: dict[str, Tensor] = {}
    for number, layer in enumerate(layers):
        weight, bias = outputs.get(f"decoders.{number}", shared)
        tensors |= {f"ctc.classifiers.{layer}.weight": weight.clone(), f"ctc.classifiers.{layer}.bias": bias.clone()}
    return make_exits_config(layers, shared[0], tokens), tensors


def _find_layers(names: dict[str, re.Match[str]], config: Config) -> list[int]:
    """The layers that have an exit; the last layer of the network is the last of them."""
    num_layers = int(config.get("num_hidden_layers", 12))
    numbers = [int(match[2]) for match in names.values() if match[2] is not None]
    has_exits = bool(numbers) or any(WITH_EXITS.fullmatch(str(name)) for name in config.get("architectures") or [])
    if not has_exits:
        return [num_layers]
    count = NUM_EXITS if len(numbers) < 2 else max(numbers) + 1  # one name: the others were dropped as copies
    layers = [LAYERS_BETWEEN * (number + 1) for number in range(count)]
    if layers[-1] != num_layers:
        raise CheckpointError(
            f"has {count} exits, the last at layer {layers[-1]}, and {num_layers} layers: the last is to have one"
        )
    return layers


def _find_tokens(config: Config, folder: Path) -> Tokens | None:
    path = folder / "vocab.json"
    if not path.is_file():
        return None
    return make_from_vocabulary(read_json(path), config.get("pad_token_id", 0))
