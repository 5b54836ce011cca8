"""Everything that daisy refuses. One line each: what, where, what to do.

DaisyError
  AudioError         a recording that cannot be read or used
  CheckpointError    a model file that cannot be read, written or converted
  PolicyError        an exit policy with wrong or missing settings
  OutputError        a place that cannot be written, or that holds another run's results
  UsageError         a request that makes no sense as a whole
"""

import difflib
from collections.abc import Iterable


class DaisyError(Exception):
    """Base of all refusals; ``str(error)`` is one line for the person who asked."""


class AudioError(DaisyError):
    """A recording that cannot be read or used."""


class CheckpointError(DaisyError):
    """A model file that cannot be read, written or converted."""


class PolicyError(DaisyError):
    """An exit policy with wrong or missing settings."""


class OutputError(DaisyError):
    """A place that cannot be written, or that holds another run's results."""


class UsageError(DaisyError):
    """A request that makes no sense as a whole."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """One line for a name that is not known: near matches first, then all of them."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"unknown {kind} {name!r}: {hint}known are {', '.join(choices)}"
