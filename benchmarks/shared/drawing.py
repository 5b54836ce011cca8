"""The style of figures."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def style_axes(panels: Iterable["Axes"], grid: Literal["both", "x", "y"] = "both") -> None:
    """Give axes a faint grid, and no frame above and to the right."""
    for axes in panels:
        axes.grid(axis=grid, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
