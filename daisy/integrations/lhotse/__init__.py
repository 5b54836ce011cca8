"""Integration with lhotse: states as features, exits as fields of cuts, fairseq's manifests as cuts."""

try:
    import lhotse  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("lhotse is not installed: pip install 'daisy-speech[lhotse]' has it") from error

from daisy.integrations.lhotse.exits import add_exits
from daisy.integrations.lhotse.extractor import DaisyFeatures, DaisyFeaturesConfig, Encoding
from daisy.integrations.lhotse.manifests import read_manifest
from daisy.integrations.lhotse.shar import extend_shar

__all__ = ["DaisyFeatures", "DaisyFeaturesConfig", "Encoding", "add_exits", "extend_shar", "read_manifest"]
