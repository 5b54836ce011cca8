"""Pack the weights of heads for speed."""

from __future__ import annotations

import torch
from torch import Tensor

from daisy.models import CTCHeads, ExitHeads
from daisy.models.ctc_heads import AttentionBranch
from daisy.models.packing import FrameLayout
from daisy.runtime.attention import attend
from daisy.runtime.dtypes import STATE_DTYPES, Precision, to_floating
from daisy.runtime.linear import make_linear, pack_linear
from daisy.runtime.packed_backbone import PackedNorm
from daisy.runtime.private_ops import has_varlen_attention


class PackedHeads:
    """Exit heads as the exit loop runs them (`daisy.policies.scores.Heads`).

    Args:
        heads: heads to pack.
        precision: precision to compute in; with "int8" heads stay in float32.
        layers: layers whose heads are wanted; None: all.
    """

    def __init__(self, heads: ExitHeads, precision: Precision = "float32", layers: range | None = None):
        layers = range(1, heads.config.num_layers + 1) if layers is None else layers
        wanted = [(layer, classifier) for layer, classifier in enumerate(heads.units, 1) if layer in layers]
        self.units = {layer: pack_linear(classifier, to_floating(precision)) for layer, classifier in wanted}
        self.config, self.regressors = heads.config, heads.regressors

    capturable = True
    """Whether the host needs no number of the batch to run the heads, so that CUDA graphs can hold them."""

    def unit_logits(self, layer: int, features: Tensor, layout: FrameLayout | None = None) -> Tensor:
        """Classify features of layer ``layer``, (F, D), to unit logits (F, K)."""
        return self.units[layer](features)

    predicted_loss = ExitHeads.predicted_loss


class PackedCTCHeads:
    """CTC exits as the exit loop runs them (`daisy.policies.scores.Heads`).

    Args:
        heads: heads to pack.
        precision: precision to compute in; with "int8" heads stay in float32.
        layers: layers whose exits are wanted; None: all.
    """

    predicted_loss = CTCHeads.predicted_loss

    def __init__(self, heads: CTCHeads, precision: Precision = "float32", layers: range | None = None):
        floating = to_floating(precision)
        self.config = heads.config
        wanted = range(1, heads.config.num_layers + 1) if layers is None else layers
        self.classifiers = {
            int(name): pack_linear(module, floating)
            for name, module in heads.classifiers.items()
            if int(name) in wanted
        }
        self.attentions = {
            int(name): PackedAttention(module, floating)
            for name, module in heads.attentions.items()
            if int(name) in wanted
        }

    @property
    def capturable(self) -> bool:
        """See `PackedHeads`."""
        return all(attention.capturable for attention in self.attentions.values())

    def unit_logits(self, layer: int, features: Tensor, layout: FrameLayout | None = None) -> Tensor:
        """Classify states of layer ``layer``, (F, D), to logits (F, V)."""
        if layer in self.attentions:
            assert layout is not None
            features = self.attentions[layer](features, layout)
        return self.classifiers[layer](features)


class PackedAttention:
    """Self-attention of a branch, with one product for queries, keys and values."""

    def __init__(self, branch: AttentionBranch, precision: Precision):
        inner_width, self.num_heads = branch.q_proj.out_features, branch.num_heads
        scale = (inner_width // branch.num_heads) ** -0.5
        projections = (branch.q_proj, scale), (branch.k_proj, 1.0), (branch.v_proj, 1.0)
        self.inputs = make_linear(
            torch.cat([factor * projection.weight.detach().float() for projection, factor in projections]),
            torch.cat([factor * projection.bias.detach().float() for projection, factor in projections]),
            precision,
        )
        self.output = pack_linear(branch.out_proj, precision)
        self.norm = PackedNorm(branch.norm, STATE_DTYPES[precision])
        self.capturable = has_varlen_attention(
            branch.q_proj.weight.device, STATE_DTYPES[precision], inner_width // branch.num_heads
        )

    def __call__(self, states: Tensor, layout: FrameLayout) -> Tensor:
        """Attend within each utterance: (F, D) to (F, D)."""
        mixed = attend(self.inputs(states), layout, self.num_heads)
        return self.norm(self.output(mixed, residual=states))
