"""Whether two splits visibly read the same images."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from subnet_search.data.memory import TensorBatches


def overlap(first: Any, second: Any) -> bool:
    """Whether two splits visibly read the same images."""
    (a, rows_a), (b, rows_b) = rows_of(first), rows_of(second)
    if a is not b:
        return not _tensors(first).isdisjoint(_tensors(second))
    if rows_a is None or rows_b is None:
        return rows_a is rows_b is None or len(rows_a or rows_b or ()) > 0
    return not rows_a.isdisjoint(rows_b)


def rows_of(split: Any) -> tuple[Any, set[int] | None]:
    """The data set at the bottom of a split, and which of its rows are read (None: all)."""
    from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

    data, rows = getattr(split, "dataset", split), None
    sampler, batch_sampler = getattr(split, "sampler", None), getattr(split, "batch_sampler", None)
    if batch_sampler is not None and type(batch_sampler) is not BatchSampler:
        rows = []  # the user's own: we cannot see what it reads
    elif sampler is not None and not isinstance(sampler, RandomSampler | SequentialSampler):
        rows = list(getattr(sampler, "indices", ()))
    while hasattr(data, "indices") and hasattr(data, "dataset"):
        rows = list(data.indices) if rows is None else [data.indices[row] for row in rows]
        data = data.dataset
    return data, None if rows is None else {int(row) for row in rows}


def _tensors(split: Any) -> set[int]:
    """Addresses of the inputs that a split holds in memory as they are."""
    if isinstance(split, TensorBatches):
        return {split.images.data_ptr()}
    batches = split if isinstance(split, list | tuple) else ()
    return {batch[0].data_ptr() for batch in batches if len(batch) and isinstance(batch[0], Tensor)}
