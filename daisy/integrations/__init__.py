"""Other libraries: transformers here; lhotse and mteb in modules of their own, as importing them needs them."""

from daisy.integrations.huggingface_folder import export_huggingface
from daisy.integrations.transformers import from_hf

__all__ = ["export_huggingface", "from_hf"]
