"""Whether the data of a run are still those that it began with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from subnet_search.data.fit import labels_of
from subnet_search.data.memory import TensorBatches
from subnet_search.data.overlap import rows_of
from subnet_search.data.pictures import Pictures, paths_of
from subnet_search.data.splits import SPLITS, Splits, describe


def checksums(splits: Splits) -> dict[str, str]:
    """For each split "MEMBERS CONTENT": of what is in it, and of the pixels that are held in memory.

    Members are counts, sizes, labels, rows and files, as far as they can be seen; what is in files is not read.
    """
    counts = describe(splits)
    return {
        name: f"{_members(getattr(splits, name), counts[name])} {_content(getattr(splits, name))}"
        for name in SPLITS[:4]
        if getattr(splits, name) is not None
    }


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The splits that have other members by now, and those with the same ones but other pixels."""
    names = sorted({*before, *now})
    others = [name for name in names if before.get(name, "").split()[:1] != now.get(name, "").split()[:1]]
    return others, [name for name in names if name not in others and before[name] != now[name]]


def _members(split: Any, count: int | None) -> str:
    parts: list[Any] = [count, labels_of(split)]
    if isinstance(split, TensorBatches):
        parts += [tuple(split.images.shape[1:]), split.images.dtype]
    else:
        data, rows = rows_of(split)
        files = paths_of(data) if isinstance(data, Pictures) else ()
        parts += [None if rows is None else np.array(sorted(rows)), *files]
    return _checksum(parts)


def _content(split: Any) -> str:
    if isinstance(split, TensorBatches):
        return _checksum([split.images])
    tensors = getattr(rows_of(split)[0], "tensors", ())
    batches = split if isinstance(split, list | tuple) else ()
    return _checksum([*tensors, *(part for batch in batches for part in batch)])


def _checksum(parts: Iterable[Any]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        array = part.detach().cpu().numpy() if isinstance(part, Tensor) else part
        if isinstance(array, np.ndarray):
            digest.update(repr((array.dtype.str, array.shape)).encode())
            digest.update(np.ascontiguousarray(array).data)
        else:
            digest.update(repr(part).encode() + b"\n")
    return digest.hexdigest()
