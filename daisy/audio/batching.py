"""Utterances in batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def batch_by_length(lengths: Sequence[int], max_total: int) -> Iterator[list[int]]:
    """Indices in batches of similar length: longest first, each batch at most ``max_total`` in all.

    A single utterance longer than ``max_total`` is a batch by itself.
    """
    batch: list[int] = []
    total = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and total + lengths[index] > max_total:
            yield batch
            batch, total = [], 0
        batch.append(index)
        total += lengths[index]
    if batch:
        yield batch
