"""Extract features or training units of many recordings into files; stopped runs can be resumed."""

from daisy.extraction.datasets import FeatureDataset, ShardDataset, read_shard
from daisy.extraction.extractor import Extractor
from daisy.extraction.index import ExtractionReport, rebuild_index
from daisy.extraction.journal import Row, Settings
from daisy.extraction.labelling import LabelReport, UnitReport, make_labels
from daisy.extraction.shards import Shard
from daisy.extraction.windows import Piece, Window

__all__ = [
    "ExtractionReport",
    "Extractor",
    "FeatureDataset",
    "LabelReport",
    "Piece",
    "Row",
    "Settings",
    "Shard",
    "ShardDataset",
    "UnitReport",
    "Window",
    "make_labels",
    "read_shard",
    "rebuild_index",
]
