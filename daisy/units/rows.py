"""Define the journal rows of recordings' units, and the settings that determine them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from daisy.extraction.journal import Row, Settings

KIND = "units"


@dataclass(frozen=True, kw_only=True)
class UnitSettings(Settings):
    """Settings that determine the units: a run can continue only in a folder that was begun with the same."""

    format: str = "units"
    dtype: str = "int64"
    source: str = "heads"
    """Source of the units: "heads", or "kmeans:" and the SHA-256 of its centres."""
    num_units: int = 0
    """Number of units, K; they are 0 to K - 1."""
    units_per_sec: float = 50.0
    """Frames per second."""
    sample_rate: int = 16000
    """Sample rate of the encoder's input in Hz."""
    kind: str = KIND
    """Distinguishes these journals from those of features."""

    def __post_init__(self) -> None:
        """Accept the format that units have in a journal, which is none of features' formats."""


@dataclass(frozen=True, kw_only=True)
class UnitRow(Row):
    """Units of one recording, its exit and how it came about."""

    units: str = ""
    """Unit of each frame, separated by spaces: a list would take three times the memory."""

    def list_units(self) -> list[int]:
        """Return the units as numbers, one for each frame."""
        return [int(unit) for unit in self.units.split()]

    def public(self) -> dict[str, Any]:
        """Return the public fields of a recording, without its units."""
        said = super().public()
        del said["units"], said["output"]
        return said
