"""What speed.py, approximations.py and memory.py share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import paired
import torch
from common import utterances
from rich.console import Console
from torch import Tensor

DTYPES = ("float32", "bfloat16", "int8")
TEST_SETS = ("librispeech", "commands", "keywords", "digits", "mboshi")
console = Console()


def spoken(limit: int, device: str = "cpu") -> list[Tensor]:
    """Test recordings of all sets, at most so many of each, in a fixed order that mixes them."""
    found = [each.waveform.to(device) for each in utterances(TEST_SETS, "test", limit)]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
    return [found[index] for index in order]


def over(system: Callable[[list[Tensor]], object], batches: Sequence[list[Tensor]]) -> Callable[[], None]:
    """What runs a system on one batch after the other."""
    return lambda: [system(batch) for batch in batches] and None


def row(what: str, **values: object) -> dict:
    """A row, shown as it is made."""
    rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in values.items()}
    console.print(what, *(f"{key} {value}" for key, value in rounded.items()), highlight=False, soft_wrap=True)
    return {"measure": what, **rounded}


def ratio_of(times: dict[str, paired.Times], one: str, other: str) -> dict[str, float]:
    """How much longer one takes than another."""
    middle, low, high = times[one].over(times[other])
    return {"seconds": times[one].median, "ratio": middle, "ratio_low": low, "ratio_high": high}


def repeated(repeats: int, device: str) -> int:
    """How often: more where a turn takes milliseconds, and graphs are made in the first."""
    return repeats if device == "cpu" else 5 * repeats
