"""The networks: HuBERT and the light heads on it, as plain torch modules."""

from daisy.models.config import BackboneConfig
from daisy.models.exit_objective import ExitObjective, LayerLosses
from daisy.models.heads import ExitHeads, FinalHead, HeadsConfig, LossRegressor
from daisy.models.hubert import Backbone
from daisy.models.losses import UnitLoss, unit_loss
from daisy.models.packing import PackedLayout

__all__ = [
    "Backbone",
    "BackboneConfig",
    "ExitHeads",
    "ExitObjective",
    "FinalHead",
    "HeadsConfig",
    "LayerLosses",
    "LossRegressor",
    "PackedLayout",
    "UnitLoss",
    "unit_loss",
]
