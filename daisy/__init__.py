"""daisy: early exit from speech representation models.

import daisy
model = daisy.load("daisy-mini")
encoder = daisy.EarlyExitEncoder(model.backbone, model.heads, model.policy("entropy"))
out = encoder([waveform])                  # 1-D float32 at 16 kHz
out.exit_layer, out.states[0][-1]          # where it stopped, and the representation there
"""

from daisy.backbone import Backbone, BackboneConfig
from daisy.checkpoint import Model, load, save
from daisy.encoder import EarlyExitEncoder, ExitOutput
from daisy.errors import AudioError, CheckpointError, DaisyError, OutputError, PolicyError
from daisy.heads import ExitHeads, FinalHead, HeadsConfig
from daisy.version import __version__

__all__ = [
    "AudioError",
    "Backbone",
    "BackboneConfig",
    "CheckpointError",
    "DaisyError",
    "EarlyExitEncoder",
    "ExitHeads",
    "ExitOutput",
    "FinalHead",
    "HeadsConfig",
    "Model",
    "OutputError",
    "PolicyError",
    "__version__",
    "load",
    "save",
]
