"""Define the look of all figures: colours that everybody can tell apart, few lines, the default policy strongest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from daisy.policies import DEFAULT_POLICY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
"""Colours of Okabe and Ito (2008) for all kinds of colour vision, with grey instead of yellow, too light on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""A marker for each colour, so that prints without colour can be read too."""
MAX_LINES = 8
"""Most lines in one figure; tables have the others."""
COMPARED: Mapping[str, Any] = MappingProxyType({"fixed": "--", "hindsight": "-.", "oracle": ":"})
"""What policies are compared with, and the dashes of its line, drawn black."""
MORE_DASHES = ((0, (1, 4)), (0, (5, 1, 1, 1)))
"""Dashes of other black lines."""
POLICIES = (DEFAULT_POLICY, "entropy", "plateau", "confidence", "patience", "regressed", "margin")
"""Policies that each have a colour of their own, the same in every figure."""
RANKED = (DEFAULT_POLICY, "fixed", "entropy", "hindsight", "plateau", "confidence", "patience", "regressed")
"""Lines that are kept first if there are too many."""
Lines = dict[str, dict[str, Any]]
"""Arguments of `Axes.plot`, by label."""


def choose_lines(labels: Iterable[str], black: Sequence[str] = ()) -> list[str]:
    """Choose the lines of a figure, in their order: all, or the `MAX_LINES` most important.

    Args:
        labels: labels of all lines.
        black: labels of lines that others are compared with; these stay.
    """
    labels = list(labels)
    wanted = [DEFAULT_POLICY, *(label for label in black if label not in COMPARED), *RANKED]
    ranked = sorted(labels, key=lambda label: wanted.index(label) if label in wanted else len(wanted))
    return [label for label in labels if label in ranked[:MAX_LINES]]


def style_lines(labels: Sequence[str], black: Sequence[str] = ()) -> Lines:
    """Style each line: a colour for each policy, the default one widest, black for what they are compared with.

    Args:
        labels: labels of at most `MAX_LINES` lines.
        black: labels of lines, besides `COMPARED`, that others are compared with.
    """
    colors = {policy: number for number, policy in enumerate(POLICIES) if policy in labels}
    free = iter([number for number in range(len(COLORS)) if number not in colors.values()] * len(labels))
    dashes = iter(MORE_DASHES * len(labels))
    styles: Lines = {}
    for label in labels:
        if label in COMPARED or label in black:
            styles[label] = {"color": "black", "linestyle": COMPARED.get(label) or next(dashes), "linewidth": 1.4}
            continue
        number = colors.get(label)
        number = next(free) if number is None else number
        styles[label] = {"color": COLORS[number], "marker": MARKERS[number], "markersize": 4, "linewidth": 1.3}
    if DEFAULT_POLICY in styles:
        styles[DEFAULT_POLICY] |= {"linewidth": 3.0, "markersize": 7, "zorder": 3}
    return styles


def style_in_order(labels: Sequence[str]) -> Lines:
    """Style lines that have an order, such as ratios from clean to noisy, with one colour map from dark to light."""
    from matplotlib import colormaps

    last = max(len(labels) - 1, 1)
    return {
        label: {
            "color": colormaps["viridis"](0.85 * index / last),
            "marker": MARKERS[index % len(MARKERS)],
            "markersize": 4,
            "linewidth": 1.6,
        }
        for index, label in enumerate(labels)
    }


def style_axes(panels: Iterable[Axes], grid: Literal["both", "x", "y"] = "both") -> None:
    """Give axes a faint grid, and no frame above and to the right."""
    for axes in panels:
        axes.grid(axis=grid, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_wrap(True)
