"""The networks (HuBERT and its kin, Conformer, Whisper's encoder) and the light heads on them, as torch modules."""

from daisy.models.attention_decoders import AttentionDecoders, DecodersConfig
from daisy.models.config import BackboneConfig
from daisy.models.conformer import Conformer
from daisy.models.conformer_config import ConformerConfig
from daisy.models.ctc_heads import CTCHeads, CTCHeadsConfig
from daisy.models.exit_objective import ExitObjective, LayerLosses
from daisy.models.heads import ExitHeads, FinalHead, HeadsConfig, LossRegressor
from daisy.models.hubert import Backbone
from daisy.models.losses import UnitLoss, unit_loss
from daisy.models.packing import PackedLayout
from daisy.models.tokens import Tokens
from daisy.models.whisper import Whisper
from daisy.models.whisper_config import WhisperConfig

__all__ = [
    "AttentionDecoders",
    "Backbone",
    "BackboneConfig",
    "CTCHeads",
    "CTCHeadsConfig",
    "Conformer",
    "ConformerConfig",
    "DecodersConfig",
    "ExitHeads",
    "ExitObjective",
    "FinalHead",
    "HeadsConfig",
    "LayerLosses",
    "LossRegressor",
    "PackedLayout",
    "Tokens",
    "UnitLoss",
    "Whisper",
    "WhisperConfig",
    "unit_loss",
]
