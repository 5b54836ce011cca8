"""Keep packed copies of modules, made when first asked for and again when the weights have changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from daisy.models import Backbone, CTCHeads
from daisy.models.kinds import AnyHeads
from daisy.runtime.dtypes import Precision
from daisy.runtime.packed_backbone import PackedBackbone
from daisy.runtime.packed_heads import PackedCTCHeads, PackedHeads

Packed = TypeVar("Packed", PackedBackbone, PackedHeads, PackedCTCHeads)
_packed: WeakKeyDictionary[nn.Module, dict[str, tuple[object, Any]]] = WeakKeyDictionary()
"""For each module and precision the state of its weights and the copies, shared by several encoders of a backbone."""


def pack_backbone(backbone: Backbone, precision: Precision) -> PackedBackbone:
    """Pack a backbone for speed, again only when its weights have changed or moved.

    Changes that autograd misses (``weight.data.mul_(2)``, or in place to weights made under ``torch.inference_mode``)
    are not noticed: call `forget_packed`.

    Raises:
        UsageError: as in `PackedBackbone`.
    """
    return _get_or_build(backbone, precision, PackedBackbone)


def pack_heads(heads: AnyHeads | None, precision: Precision) -> PackedHeads | PackedCTCHeads | None:
    """Pack heads in the same way, if there are any."""
    if isinstance(heads, CTCHeads):
        return _get_or_build(heads, precision, PackedCTCHeads)
    return None if heads is None else _get_or_build(heads, precision, PackedHeads)


def forget_packed(module: nn.Module) -> None:
    """Pack a backbone or heads again at the next use."""
    _packed.pop(module, None)


def _get_or_build(module: nn.Module, precision: Precision, build: Callable[..., Packed]) -> Packed:
    now = [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in _list_weights(module)]
    known = _packed.setdefault(module, {})
    if precision not in known or known[precision][0] != now:
        known[precision] = (now, build(module, precision))
    packed: Packed = known[precision][1]
    return packed


def _list_weights(module: nn.Module) -> list[Tensor]:
    """List parameters and buffers in one walk; ``parameters`` and ``buffers`` need two, at each call of an encoder."""
    weights: list[Tensor | None] = []
    for part in module.modules():
        weights += part._parameters.values()
        weights += part._buffers.values()
    return [weight for weight in weights if weight is not None]
