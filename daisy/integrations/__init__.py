"""Other libraries: transformers here; lhotse and mteb in separate modules, whose import needs them installed."""

from daisy.integrations.huggingface_folder import export_huggingface
from daisy.integrations.transformers import from_hf

__all__ = ["export_huggingface", "from_hf"]
