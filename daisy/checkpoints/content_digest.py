"""What a checkpoint's content is, in 64 digits: to notice a damaged file at load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class ContentDigest:
    """The SHA-256 of tensors (names, types, shapes and bytes), in the order of their names, and of a configuration.

    The configuration is one that JSON gives back as it is: keys are text, whose order is another than that of numbers.

    Tensors are added one by one as they are read, so that none has to be kept in its file's type.
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
        """Add the tensor whose name comes next."""
        self._state.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        self._state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def finish(self, config: Mapping[str, Any]) -> str:
        """Add the configuration, without its own "digest", and return the digest; nothing may be added then."""
        rest = {key: value for key, value in config.items() if key != "digest"}
        self._state.update(json.dumps(rest, sort_keys=True).encode())
        return self._state.hexdigest()
