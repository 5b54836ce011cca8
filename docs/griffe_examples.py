"""For the reference: griffe knows a section of examples by its plural, and our docstrings have one each."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Makes ``Example:`` a section of examples, which is shown as code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Look at each object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.M)
