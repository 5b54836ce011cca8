"""What a checkpoint says of where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OF_HEADS = ("heads", "policies")
"""What is said of exit heads and of their policies."""


def drop_notes_of_heads(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what holds where exit heads and policies are others, or none.

    Args:
        provenance: of the model that had them.

    Returns:
        The rest of it.
    """
    return {name: note for name, note in provenance.items() if name not in OF_HEADS}
