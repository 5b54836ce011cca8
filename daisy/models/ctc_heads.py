"""Exits that recognise text: token classifiers at some layers, trained with CTC."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from daisy.errors import CheckpointError
from daisy.models.config import is_count
from daisy.models.lengths import make_valid_mask
from daisy.models.packing import FrameLayout, PackedLayout

Branch = Literal["linear", "attention"]
"""The form of an exit: a linear classifier alone, or with self-attention before it."""


@dataclass(frozen=True, kw_only=True)
class CTCHeadsConfig:
    """Shape of a set of CTC exits.

    Example:
        >>> from daisy.models import CTCHeadsConfig
        >>> CTCHeadsConfig(layers=(5, 8, 11, 12), width=768, num_tokens=32).exit_number(8)
        2
    """

    layers: tuple[int, ...]
    """Layers at which the exits stand, in rising order; the last is the backbone's last layer, L."""
    width: int
    """Width of the states, D."""
    num_tokens: int
    """Size V of the vocabulary, the blank included."""
    blank: int = 0
    """Index of the CTC blank."""
    branch: Branch = "linear"
    """Form of all exits but the last; "attention": self-attention, residual and norm before the classifier (HuBERT-EE,
    arXiv:2204.06328)."""
    final_branch: Branch = "linear"
    """Form of the last exit, which usually is that of a recogniser without exits."""
    attention_width: int | None = None
    """Width of the branches' queries, keys and values; D where None. The HuBERT-EE paper does not give its value."""
    num_heads: int = 8
    """Attention heads of a branch. The HuBERT-EE paper does not give its value."""

    reads: ClassVar[str] = "states"
    """The input of the heads, as in `daisy.models.HeadsConfig.reads`."""
    regressors: ClassVar[bool] = False

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CTCHeadsConfig:
        """Make a configuration from the fields of ``dataclasses.asdict``, also after a round trip through JSON.

        Raises:
            CheckpointError: on unknown fields or invalid values.
        """
        try:
            config = cls(**{**values, "layers": tuple(values.get("layers", ()))})
        except TypeError as error:
            raise CheckpointError(f"CTC exits: {error}") from None
        config.validate()
        return config

    def validate(self) -> None:
        """Check that the values are valid.

        Raises:
            CheckpointError: naming the first field that is wrong.
        """
        for name in ("width", "num_tokens", "num_heads", *(["attention_width"] if self.attention_width else [])):
            if not is_count(value := getattr(self, name)):
                raise CheckpointError(f"CTC exits: {name} must be a whole number, at least 1, found {value!r}")
        rising = all(is_count(layer) for layer in self.layers) and list(self.layers) == sorted(set(self.layers))
        if not self.layers or not rising:
            raise CheckpointError(f"CTC exits: layers must be rising whole numbers from 1 on, found {self.layers!r}")
        if not (isinstance(self.blank, int) and 0 <= self.blank < self.num_tokens):
            raise CheckpointError(f"CTC exits: blank must be one of {self.num_tokens} tokens, found {self.blank!r}")
        for name in ("branch", "final_branch"):
            if (value := getattr(self, name)) not in get_args(Branch):
                raise CheckpointError(f"CTC exits: {name} must be one of {get_args(Branch)}, found {value!r}")
        if "attention" in (self.branch, self.final_branch) and self.inner_width % self.num_heads:
            raise CheckpointError(
                f"CTC exits: attention_width {self.inner_width} is not a multiple of num_heads {self.num_heads}"
            )

    @property
    def num_layers(self) -> int:
        """Number of layers of the backbone, L."""
        return self.layers[-1]

    @property
    def inner_width(self) -> int:
        """Width of the branches' queries, keys and values."""
        return self.attention_width or self.width

    def exit_number(self, layer: int) -> int:
        """Return the number of the exit at a layer, 1 to E.

        Raises:
            CheckpointError: where the layer has no exit.
        """
        if layer not in self.layers:
            raise CheckpointError(f"no exit at layer {layer}: exits are at {', '.join(map(str, self.layers))}")
        return self.layers.index(layer) + 1

    def has_attention(self, layer: int) -> bool:
        """Tell whether the exit at a layer has self-attention."""
        return (self.final_branch if layer == self.layers[-1] else self.branch) == "attention"


class CTCHeads(nn.Module):
    """One token classifier per exit, linear or with self-attention before it.

    Args:
        config: shape of the heads.

    Raises:
        CheckpointError: on an invalid configuration.

    Example:
        >>> import torch
        >>> from daisy.models import CTCHeads, CTCHeadsConfig
        >>> heads = CTCHeads(CTCHeadsConfig(layers=(2, 4), width=8, num_tokens=5))
        >>> heads(4, torch.zeros(3, 7, 8), torch.tensor([7, 5, 2])).shape
        torch.Size([3, 7, 5])
    """

    def __init__(self, config: CTCHeadsConfig):
        super().__init__()
        config.validate()
        self.config = config
        self.classifiers = nn.ModuleDict(
            {str(layer): nn.Linear(config.width, config.num_tokens) for layer in config.layers}
        )
        self.attentions = nn.ModuleDict(
            {
                str(layer): AttentionBranch(config.width, config.inner_width, config.num_heads)
                for layer in config.layers
                if config.has_attention(layer)
            }
        )

    def forward(self, layer: int, states: Tensor, num_frames: Tensor | None = None) -> Tensor:
        """Classify a padded batch, for training.

        Args:
            layer: one of ``config.layers``.
            states: states of that layer, (B, T, D).
            num_frames: (B,) int64; None where no utterance is padded.

        Returns:
            Logits (B, T, V); values past an utterance's end are meaningless.
        """
        if self.config.has_attention(layer):
            states = self.attentions[str(layer)](states, num_frames)
        logits: Tensor = self.classifiers[str(layer)](states)
        return logits

    def unit_logits(self, layer: int, features: Tensor, layout: FrameLayout | None = None) -> Tensor:
        """Compute the token logits of a batch's frames, which are concatenated without padding.

        Args:
            layer: one of ``config.layers``.
            features: states of that layer, (F, D).
            layout: layout of the utterances; may be left out where the exit has no attention.

        Returns:
            Logits (F, V).
        """
        if not self.config.has_attention(layer):
            return self.forward(layer, features)
        assert isinstance(layout, PackedLayout)  # CUDA graphs only run packed heads
        return layout.unpad(self.forward(layer, layout.pad(features), layout.num_frames))

    def predicted_loss(self, layer: int, pooled: Tensor) -> Tensor:
        """Raise an error, as CTC exits have no loss regressors (`daisy.policies.scores.Heads`).

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError("CTC exits have no loss regressors; use a policy that reads the entropy")

    def cut(self, layer: int) -> CTCHeads:
        """Return the exits up to the one at ``layer``, which becomes the last; the weights are shared with this object.

        Raises:
            CheckpointError: where the layer has no exit.
        """
        number = self.config.exit_number(layer)
        final: Branch = "attention" if self.config.has_attention(layer) else "linear"
        cut = CTCHeads(dataclasses.replace(self.config, layers=self.config.layers[:number], final_branch=final))
        for name in ("classifiers", "attentions"):
            for key in getattr(cut, name):
                getattr(cut, name)[key] = getattr(self, name)[key]
        return cut


class AttentionBranch(nn.Module):
    """Self-attention with residual and norm, which HuBERT-EE has before a classifier.

    Args:
        width: width of the states, D.
        inner_width: width of queries, keys and values.
        num_heads: number of attention heads.
    """

    def __init__(self, width: int, inner_width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner_width) for _ in range(3))
        self.out_proj = nn.Linear(inner_width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, states: Tensor, num_frames: Tensor | None = None) -> Tensor:
        """Attend within each utterance: (B, T, D) to (B, T, D); ``num_frames`` (B,) int64."""
        mask = None
        if num_frames is not None and int(num_frames.min()) < states.shape[1]:
            mask = make_valid_mask(num_frames.to(states.device), states.shape[1])[:, None, None]
        queries, keys, values = (
            projection(states).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        attended: Tensor = self.norm(states + self.out_proj(mixed.transpose(1, 2).flatten(2)))
        return attended
