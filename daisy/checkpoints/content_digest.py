"""A digest of a checkpoint's content (64 hexadecimal digits), by which loading notices a damaged file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class ContentDigest:
    """The SHA-256 of tensors (names, types, shapes and bytes), in the order of their names, and of a configuration.

    The configuration must survive a round trip through JSON, so its keys must be text (numbers would sort differently).

    Tensors are added one by one as they are read, so that none has to be kept in the file's data type.
    """

    def __init__(self) -> None:
        self._state = hashlib.sha256()

    @classmethod
    def of(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
        """Compute the digest of a configuration and of tensors on any device, 64 hexadecimal digits."""
        content = cls()
        for name in sorted(tensors):
            content.add(name, tensors[name])
        return content.finish(config)

    def add(self, name: str, tensor: Tensor) -> None:
        """Add a tensor; tensors must be added in the order of their names."""
        self._state.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        self._state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def finish(self, config: Mapping[str, Any]) -> str:
        """Add the configuration, without its own "digest", and return the digest; nothing may be added afterwards."""
        rest = {key: value for key, value in config.items() if key != "digest"}
        self._state.update(json.dumps(rest, sort_keys=True).encode())
        return self._state.hexdigest()
