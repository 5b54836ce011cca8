"""The options of daisy-s3prl besides s3prl's own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from daisy.errors import UsageError
from s3prl_upstream.cache import DTYPES

FEATURIZERS = ("stock", "dynamic", "dynamic-s")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Values of the options; `parser` explains them."""

    featurizer: str | None = None
    """None if not given: the checkpoint's, or else stock."""
    cache: Path | None = None
    cache_dtype: str | None = None
    """None if not given: float16."""
    cache_mean: bool = False
    cache_full: bool = False


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parser() -> argparse.ArgumentParser:
    """Make the parser of the options that s3prl does not know."""
    daisy_parser = _Parser(add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    group = daisy_parser.add_argument_group("daisy")
    group.add_argument(
        "--featurizer",
        choices=FEATURIZERS,
        help="stock: s3prl's weighted sum, the exit layer replacing those after it (default); dynamic: softmax over "
        "the layers that were run; dynamic-s: separate weights for each exit layer",
    )
    group.add_argument("--cache", metavar="DIR", type=Path, help="Keep the upstream's states on disk; made if absent")
    group.add_argument("--cache-dtype", choices=list(DTYPES), help="Type of the cached states; float16 if not given")
    group.add_argument(
        "--cache-mean",
        action="store_true",
        help="Keep only the mean over time, for tasks whose model is linear up to mean pooling (SID, IC, KS)",
    )
    group.add_argument(
        "--cache-full",
        action="store_true",
        help="Keep full runs and all scores, which every policy can use: one run is enough for a comparison",
    )
    return daisy_parser


def parse(arguments: Sequence[str]) -> tuple[Options, list[str]]:
    """Parse our options, and return the arguments left for s3prl.

    Raises:
        UsageError: on a value that an option does not take.
    """
    values, rest = parser().parse_known_args(list(arguments))
    options = Options(**vars(values))
    for name in ("cache_mean", "cache_dtype", "cache_full"):
        if getattr(options, name) and options.cache is None:
            raise UsageError(f"--{name.replace('_', '-')} is for --cache DIR")
    return options, rest
