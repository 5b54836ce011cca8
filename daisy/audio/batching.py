"""Put utterances of similar length into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy


def batch_by_length(lengths: Sequence[int], max_total: int) -> Iterator[list[int]]:
    """Group utterances of similar length into batches, longest first.

    Args:
        lengths: lengths of the utterances.
        max_total: largest total length of a batch; a longer utterance is a batch by itself.

    Yields:
        Indices of the utterances in a batch.
    """
    batch: list[int] = []
    total = 0
    for index in map(int, numpy.argsort(-numpy.asarray(lengths), kind="stable")):
        if batch and total + lengths[index] > max_total:
            yield batch
            batch, total = [], 0
        batch.append(index)
        total += lengths[index]
    if batch:
        yield batch
