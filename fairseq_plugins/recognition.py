"""Shared parts of the plugin's recognisers: their tokens, their exits, and the configuration in their checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from daisy import checkpoints
from daisy.checkpoints.converters.plugin import STATE_KEY
from daisy.errors import UsageError
from daisy.models import CTCHeads, CTCHeadsConfig, Tokens

logger = logging.getLogger(__name__)


def read_tokens(task: Any) -> Tokens:
    """Read the tokens of a task's labels: its dictionary, and the SentencePiece model ``{labels}.model`` beside it.

    Args:
        task: ``audio_finetuning``, with labels.

    Raises:
        UsageError: where the task has no labels, or a SentencePiece model has other pieces than the dictionary.
    """
    dictionary = getattr(task, "target_dictionary", None)
    if dictionary is None:
        raise UsageError("a recogniser learns from texts: give task._name=audio_finetuning and task.labels=ltr")
    model = Path(task.cfg.data) / f"{task.cfg.labels}.model"
    pieces = model.read_bytes() if model.is_file() else None
    tokens = Tokens(symbols=tuple(dictionary.symbols), blank=dictionary.bos(), sentencepiece=pieces)
    if pieces is not None and (missing := set(tokens.list_pieces()) - set(tokens.symbols)):
        raise UsageError(f"{model}: {len(missing)} of its pieces are not in the dictionary dict.{task.cfg.labels}.txt")
    return tokens


def choose_layers(wanted: Sequence[int], num_layers: int, step: int = 2) -> tuple[int, ...]:
    """Choose the layers of exits: those that are wanted, else every ``step``-th, and the last layer.

    Raises:
        UsageError: on layers that the network does not have.
    """
    if beyond := [layer for layer in wanted if not 1 <= layer <= num_layers]:
        raise UsageError(f"exit_layers must be 1 to {num_layers}, found {beyond}")
    return tuple(sorted({*(wanted or range(step, num_layers, step)), num_layers}))


def make_exits(config: CTCHeadsConfig) -> CTCHeads:
    """Make exits whose classifiers are initialised like fairseq's output layers (its ``Linear``: Xavier, zero bias)."""
    exits = CTCHeads(config)
    for classifier in exits.classifiers.values():
        nn.init.xavier_uniform_(classifier.weight)
        nn.init.zeros_(classifier.bias)
    return exits


def take_over_exits(exits: CTCHeads, source: checkpoints.Model, tokens: Tokens) -> list[int]:
    """Initialise exits from a recogniser with the same tokens, at the layers where both have exits of the same form.

    Args:
        exits: exits to change in place.
        source: the recogniser, or a network without exits.
        tokens: tokens of ``exits``.

    Returns:
        The layers of the exits that were copied.
    """
    if source.ctc is None or source.tokens is None:
        return []
    if source.tokens.symbols != tokens.symbols or source.tokens.blank != tokens.blank:
        logger.warning("the exits of the checkpoint write other tokens than task.labels has: all exits start at random")
        return []
    theirs, taken = source.ctc.state_dict(), []
    for layer in exits.config.layers:
        if exits.config.has_attention(layer) and exits.config.num_heads != source.ctc.config.num_heads:
            continue  # weights of the same shapes with another meaning
        names = [name for name in exits.state_dict() if name.split(".")[1] == str(layer)]
        alike = sum(name.split(".")[1] == str(layer) for name in theirs) == len(names)
        if alike and all(name in theirs and theirs[name].shape == exits.state_dict()[name].shape for name in names):
            exits.load_state_dict({name: theirs[name] for name in names}, strict=False)
            taken.append(layer)
    return taken


def remember(task: Any, parts: checkpoints.Model) -> None:
    """Keep a recogniser's configuration in the task's state, so that the checkpoint loads without other files."""
    task.state.merge_state_dict({STATE_KEY: parts.config()})


def recall(task: Any) -> dict[str, Any] | None:
    """Return the configuration that `remember` kept in a checkpoint that is being loaded; None for a new model."""
    kept: dict[str, Any] | None = task.state.state_dict.get(STATE_KEY)
    return kept


class Recogniser:
    """The methods that fairseq's ``ctc`` criterion and decoders call on a model, for the last exit.

    ``forward`` returns ``logits`` (by layer, (B, T, V)), ``num_frames`` (B,) and, like fairseq's CTC models,
    ``encoder_out`` (T, B, V) and ``padding_mask`` (B, T), True where padded.
    """

    def get_logits(self, net_output: dict[str, Any]) -> Tensor:
        """Return the last exit's logits (T, B, V); past an utterance's end only the blank is possible."""
        logits, padding = net_output["encoder_out"], net_output["padding_mask"]
        if padding is not None and padding.any():
            logits = logits.masked_fill(padding.T[..., None], float("-inf"))
            logits[..., net_output["blank"]] = logits[..., net_output["blank"]].masked_fill(padding.T, 0.0)
        return logits

    def get_normalized_probs(self, net_output: dict[str, Any], log_probs: bool, sample: Any = None) -> Tensor:
        """Return the last exit's probabilities or their logarithms, (T, B, V) float32."""
        logits = net_output["encoder_out"].float()
        return logits.log_softmax(-1) if log_probs else logits.softmax(-1)


def make_output(logits: dict[int, Tensor], num_frames: Tensor, padding: Tensor | None, blank: int) -> dict[str, Any]:
    """Make the output of `Recogniser.forward`."""
    return {
        "logits": logits,
        "num_frames": num_frames,
        "encoder_out": logits[max(logits)].transpose(0, 1),
        "encoder_padding_mask": padding,
        "padding_mask": padding,
        "blank": blank,
    }
