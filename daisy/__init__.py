"""daisy: early exit from speech representation models.

    import daisy

    model = daisy.load("daisy-mini")
    encoder = model.encoder("forecast")         # or "entropy", threshold=2.0; or "policy.json"
    out = encoder([waveform])                  # float32 at 16 kHz, a tensor or a numpy array
    out.exit_layer, out.last_hidden_state      # where it stopped, and the representation there

Exported names are imported when they are first used, so that the command line starts without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from daisy.errors import AudioError, CheckpointError, DaisyError, OutputError, PolicyError, UsageError
from daisy.version import __version__

if TYPE_CHECKING:
    from daisy.checkpoints import Model, load, save
    from daisy.encoder import EarlyExitEncoder
    from daisy.integrations import from_hf
    from daisy.models import Backbone, BackboneConfig, ExitHeads, FinalHead, HeadsConfig
    from daisy.runtime.exit_output import ExitOutput

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
    "UsageError",
    "__version__",
    "from_hf",
    "load",
    "save",
]

_LAZY = {
    **dict.fromkeys(("Model", "load", "save"), "daisy.checkpoints"),
    "EarlyExitEncoder": "daisy.encoder",
    "from_hf": "daisy.integrations.transformers",
    "ExitOutput": "daisy.runtime.exit_output",
    **dict.fromkeys(("Backbone", "BackboneConfig", "ExitHeads", "FinalHead", "HeadsConfig"), "daisy.models"),
}


_PACKAGES = (
    "audio",
    "calibration",
    "checkpoints",
    "evaluation",
    "extraction",
    "models",
    "policies",
    "recognition",
    "units",
)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _PACKAGES:
        return import_module(f"daisy.{name}")
    raise AttributeError(f"module 'daisy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
