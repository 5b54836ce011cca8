"""Attention decoders at the exits of a recogniser, beside its CTC exits (arXiv:2309.09546)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from daisy.errors import CheckpointError
from daisy.models.config import is_count
from daisy.models.conformer import make_positions
from daisy.models.lengths import make_valid_mask

KeysAndValues = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class DecodersConfig:
    """Shape of a set of attention decoders, one for each CTC exit."""

    layers: tuple[int, ...]
    """Layers at which the decoders stand: the layers of the CTC exits."""
    width: int
    """Width of the states and of the decoders, D."""
    num_tokens: int
    """Size V of the vocabulary, the same as that of the CTC exits."""
    begin: int
    """Index of the token with which each text begins."""
    end: int
    """Index of the token with which each text ends."""
    num_blocks: int = 6
    """Transformer layers per decoder; 6 in the public code."""
    num_heads: int = 8
    """Attention heads."""
    ffn_width: int = 2048
    """Inner width of the feed-forward modules."""
    dropout: float = 0.1
    """Dropout probability in training."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DecodersConfig:
        """Make a configuration from the fields of ``dataclasses.asdict``, also after a round trip through JSON.

        Raises:
            CheckpointError: on unknown fields or invalid values.
        """
        try:
            config = cls(**{**values, "layers": tuple(values.get("layers", ()))})
        except TypeError as error:
            raise CheckpointError(f"attention decoders: {error}") from None
        config.validate()
        return config

    def validate(self) -> None:
        """Check that the values are valid.

        Raises:
            CheckpointError: naming the first field that is wrong.
        """
        for name in ("width", "num_tokens", "num_blocks", "num_heads", "ffn_width"):
            if not is_count(value := getattr(self, name)):
                raise CheckpointError(f"attention decoders: {name} must be a whole number, at least 1, found {value!r}")
        if not self.layers or not all(is_count(layer) for layer in self.layers):
            raise CheckpointError(f"attention decoders: layers must be whole numbers from 1 on, found {self.layers!r}")
        if self.width % self.num_heads or self.width % 2:
            raise CheckpointError(
                f"attention decoders: width {self.width} must be even and a multiple of num_heads {self.num_heads}"
            )
        for name in ("begin", "end"):
            if not (isinstance(value := getattr(self, name), int) and 0 <= value < self.num_tokens):
                raise CheckpointError(
                    f"attention decoders: {name} must be one of {self.num_tokens} tokens, found {value!r}"
                )
        if not (isinstance(self.dropout, (int, float)) and 0 <= self.dropout < 1):
            raise CheckpointError(f"attention decoders: dropout must be from [0, 1), found {self.dropout!r}")

    def cut(self, layer: int) -> DecodersConfig:
        """Return the configuration of the decoders up to a layer."""
        return dataclasses.replace(self, layers=tuple(end for end in self.layers if end <= layer))


class AttentionDecoders(nn.Module):
    """Transformer decoders over tokens, one per exit; they share the token embedding and the final norm.

    Pre-norm layers and sinusoidal positions, as in augustgw/early-exit-transformer (``full_conformer``); but
    padding is kept out of the attention to the states, so that an utterance gives the same alone and in a batch.

    Args:
        config: shape of the decoders.

    Raises:
        CheckpointError: on an invalid configuration.

    Example:
        >>> import torch
        >>> from daisy.models import AttentionDecoders, DecodersConfig
        >>> config = DecodersConfig(layers=(2, 4), width=8, num_tokens=5, begin=2, end=2, num_blocks=1, num_heads=2)
        >>> AttentionDecoders(config)(4, torch.zeros(3, 7, 8), torch.tensor([7, 5, 2]), torch.zeros(3, 6).long()).shape
        torch.Size([3, 6, 5])
    """

    def __init__(self, config: DecodersConfig):
        super().__init__()
        config.validate()
        self.config = config
        names = [str(layer) for layer in config.layers]
        self.embedding = nn.Embedding(config.num_tokens, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleDict(
            {name: nn.ModuleList(_make_block(config) for _ in range(config.num_blocks)) for name in names}
        )
        self.classifiers = nn.ModuleDict({name: nn.Linear(config.width, config.num_tokens) for name in names})

    def forward(self, layer: int, states: Tensor, num_frames: Tensor | None, tokens: Tensor) -> Tensor:
        """Predict each next token from those before it.

        Args:
            layer: one of ``config.layers``.
            states: states of that layer, (B, T, D).
            num_frames: (B,) int64; None where no utterance is padded.
            tokens: (B, U) int64, beginning with ``config.begin``; what follows an utterance's end does not matter.

        Returns:
            Logits (B, U, V); those at position u are for the token after ``tokens[:, u]``.
        """
        length = tokens.shape[1]
        positions = make_positions(length, self.config.width, states.device)
        hidden = self.dropout(self.embedding(tokens) + positions.to(states.dtype))
        later = torch.ones(length, length, dtype=torch.bool, device=states.device).triu(1)
        padded = None
        if num_frames is not None and int(num_frames.min()) < states.shape[1]:
            padded = ~make_valid_mask(num_frames.to(states.device), states.shape[1])
        for block in self.blocks[str(layer)]:
            hidden = block(hidden, states, tgt_mask=later, memory_key_padding_mask=padded)
        logits: Tensor = self.classifiers[str(layer)](self.norm(hidden))
        return logits

    def project_states(self, layer: int, states: Tensor) -> list[KeysAndValues]:
        """Compute once the keys and values that the decoding of all texts of an utterance attends to.

        Args:
            layer: one of ``config.layers``.
            states: states of that layer, (T, D).

        Returns:
            Keys and values of each block, (1, heads, T, D / heads) each.
        """
        projected = []
        for block in self.blocks[str(layer)]:
            weight, bias = (part[self.config.width :] for part in _get_projection(block))
            keys, values = nn.functional.linear(states[None], weight, bias).chunk(2, -1)
            projected.append((self._split(keys), self._split(values)))
        return projected

    def predict_next(self, layer: int, projected: list[KeysAndValues], tokens: Tensor) -> Tensor:
        """Predict the token after each text of an utterance, as `forward` does at the last position, without dropout.

        Args:
            layer: one of ``config.layers``.
            projected: keys and values of the utterance, from `project_states`.
            tokens: (B, U) int64, beginning with ``config.begin``.

        Returns:
            Logits (B, V).
        """
        length, width = tokens.shape[1], self.config.width
        hidden = self.embedding(tokens)
        hidden = hidden + make_positions(length, width, hidden.device).to(hidden.dtype)
        later = torch.ones(length, length, dtype=torch.bool, device=hidden.device).triu(1)
        for block, (keys, values) in zip(self.blocks[str(layer)], projected, strict=True):
            normed = block.norm1(hidden)
            hidden = hidden + block.self_attn(normed, normed, normed, attn_mask=later, need_weights=False)[0]
            weight, bias = (part[:width] for part in _get_projection(block))
            queries = self._split(nn.functional.linear(block.norm2(hidden), weight, bias))
            shape = (len(tokens), -1, -1, -1)
            read = nn.functional.scaled_dot_product_attention(queries, keys.expand(shape), values.expand(shape))
            hidden = hidden + block.multihead_attn.out_proj(read.transpose(1, 2).flatten(2))
            hidden = hidden + block.linear2(block.activation(block.linear1(block.norm3(hidden))))
        logits: Tensor = self.classifiers[str(layer)](self.norm(hidden[:, -1]))
        return logits

    def _split(self, hidden: Tensor) -> Tensor:
        """Split (B, N, D) into heads, (B, heads, N, D / heads)."""
        return hidden.view(*hidden.shape[:2], self.config.num_heads, -1).transpose(1, 2)


def _get_projection(block: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the weight (3 D, D) and bias of the queries, keys and values in a block's attention to the states."""
    attention = block.multihead_attn
    assert isinstance(attention, nn.MultiheadAttention)
    return attention.in_proj_weight, attention.in_proj_bias


def _make_block(config: DecodersConfig) -> nn.TransformerDecoderLayer:
    return nn.TransformerDecoderLayer(
        config.width,
        config.num_heads,
        dim_feedforward=config.ffn_width,
        dropout=config.dropout,
        batch_first=True,
        norm_first=True,
    )
