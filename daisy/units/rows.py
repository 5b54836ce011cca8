"""What is noted of a recording's units, and what decides them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from daisy.extraction.journal import Row, Settings

KIND = "units"


@dataclass(frozen=True, kw_only=True)
class UnitSettings(Settings):
    """What decides the units: a run may only go on in a folder that was begun with the same."""

    format: str = "units"
    dtype: str = "int64"
    source: str = "heads"
    """Whose units: "heads", or "kmeans:" and the SHA-256 of its centres."""
    num_units: int = 0
    """K, so that units are 0 to K - 1."""
    units_per_sec: float = 50.0
    """Frames a second."""
    sample_rate: int = 16000
    """Hz, of what the encoder hears."""
    kind: str = KIND
    """Tells these journals from those of features."""

    def __post_init__(self) -> None:
        """Accept the form that units have in a journal, which is none of features."""


@dataclass(frozen=True, kw_only=True)
class UnitRow(Row):
    """One recording's units, its exit and how it came about."""

    units: str = ""
    """One for each frame, with a space between: a list would take three times the memory."""

    def list_units(self) -> list[int]:
        """Return the units as numbers, one for each frame."""
        return [int(unit) for unit in self.units.split()]

    def public(self) -> dict[str, Any]:
        """Return what is said of a recording, but for its units."""
        said = super().public()
        del said["units"], said["output"]
        return said
