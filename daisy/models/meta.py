"""Build modules whose weights come from a file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _WithoutValues(TorchFunctionMode):
    """Leaves out initial values: to compute them on the meta device, PyTorch imports sympy, which takes a second."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        settings = kwargs or {}
        if getattr(function, "__module__", "") == "torch.nn.init":
            return args[0] if args else settings["tensor"]
        return (torch.empty if function in (torch.zeros, torch.ones) else function)(*args, **settings)


@contextlib.contextmanager
def build_without_memory() -> Iterator[None]:
    """Give the modules that are built here shapes, but neither memory nor values (PyTorch's device "meta")."""
    with torch.device("meta"), _WithoutValues():
        yield
