"""Encode recordings as discrete units: the full model's, by early exit, or those of k-means on a layer."""

from daisy.units.classifiers import HeadUnits, KmeansUnits
from daisy.units.encoder import UnitEncoder, UnitSequence
from daisy.units.extractor import UnitExtractor
from daisy.units.files import rebuild_units
from daisy.units.kmeans import read_kmeans
from daisy.units.measures import bitrate, unit_error_rate
from daisy.units.rows import UnitRow, UnitSettings
from daisy.units.sequences import deduplicate, repeat

__all__ = [
    "HeadUnits",
    "KmeansUnits",
    "UnitEncoder",
    "UnitExtractor",
    "UnitRow",
    "UnitSequence",
    "UnitSettings",
    "bitrate",
    "deduplicate",
    "read_kmeans",
    "rebuild_units",
    "repeat",
    "unit_error_rate",
]
