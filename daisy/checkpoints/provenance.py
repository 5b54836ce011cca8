"""What a checkpoint says about its origin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OF_HEADS = ("heads", "policies")
"""The notes about exit heads and their policies."""


def drop_notes_of_heads(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the notes that still hold after exit heads and policies are replaced or removed.

    Args:
        provenance: provenance of the model that had them.

    Returns:
        The remaining notes.
    """
    return {name: note for name, note in provenance.items() if name not in OF_HEADS}
