"""Other libraries, each imported where it is used: transformers."""

from daisy.integrations.huggingface_folder import export_huggingface
from daisy.integrations.transformers import from_hf

__all__ = ["export_huggingface", "from_hf"]
