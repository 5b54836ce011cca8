"""Collapse CTC paths to tokens, and compute edit distances."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import groupby


def collapse(path: Sequence[int], blank: int) -> list[int]:
    """Turn a CTC path, with a token for each frame, into tokens: repetitions count once, blanks not at all.

    Example:
        >>> from daisy.policies.texts import collapse
        >>> collapse([0, 3, 3, 0, 3, 5, 0], blank=0)
        [3, 3, 5]
    """
    return [token for token, _ in groupby(path) if token != blank]


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Count the insertions, deletions and substitutions that turn one sequence into the other (Levenshtein).

    The table is computed a column at a time, as bits of an integer: H. Hyyrö, "A bit-vector algorithm for computing
    Levenshtein and Damerau edit distances", Nordic Journal of Computing 10, 2003. Error rates use jiwer; this function
    needs no package and serves inside the exit loop.

    Example:
        >>> from daisy.policies.texts import edit_distance
        >>> edit_distance("kitten", "sitting")
        3
    """
    if not first or not second:
        return max(len(first), len(second))
    places: dict[Hashable, int] = {}
    for index, item in enumerate(first):
        places[item] = places.get(item, 0) | 1 << index
    every, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    rises, falls, distance = every, 0, len(first)  # of the column: where it is one more, or less, than the row before
    for item in second:
        equal = places.get(item, 0)
        diagonal = (((equal & rises) + rises) ^ rises) | equal | falls
        grows, shrinks = falls | ~(diagonal | rises) & every, rises & diagonal
        distance += bool(grows & last) - bool(shrinks & last)
        grows, shrinks = grows << 1 | 1, shrinks << 1
        rises, falls = (shrinks | ~(diagonal | grows)) & every, grows & diagonal & every
    return distance
