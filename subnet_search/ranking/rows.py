"""Where the images of a batch stand in a tensor: attention and windows mix the batch with other axes."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from contextlib import ExitStack
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from subnet_search.elastic.supernet import Supernet
from subnet_search.ranking.ends import Attach, Change

Key = TypeVar("Key", bound=Hashable)


class Rows(NamedTuple):
    """Along an axis, each image has so many positions in a row, then comes the next one, again and again."""

    axis: int
    run: int


def find_rows(supernet: Supernet, places: Mapping[Key, Attach]) -> dict[Key, Rows | None]:
    """Asks the active net about three images of which the second is NaN, and so is what comes of it.

    Args:
        supernet: in evaluation mode.
        places: what is attached there sees the tensors in question.

    Returns:
        Of every place that was passed; None where images are not apart. Empty if the network takes no such images.
    """
    example, found = supernet.example, dict[Key, Rows | None]()
    if not isinstance(example, Tensor) or not example.is_floating_point():
        return {}
    example = example.to(next(supernet.parameters()))

    def noting(key: Key) -> Change:
        def note(x: Tensor) -> Tensor:
            found[key] = found.get(key) or _rows(x.isnan())
            return x

        return note

    with ExitStack() as attached, torch.no_grad():
        for key, attach in places.items():
            attached.callback(attach(noting(key)))
        try:
            supernet(torch.cat([example, torch.full_like(example, math.nan), example]))
        except Exception:  # user code runs here: it may refuse NaN
            return {}
    return found


def _rows(second: Tensor) -> Rows | None:
    """The same from a tensor that tells what the second of three images reaches; it need not be all of its rows.

    What depends on no image, a class token say, belongs to the images where it comes three times.
    """
    for axis, size in enumerate(second.shape):
        mine = second.movedim(axis, 0).flatten(1).any(dim=1).cpu()
        run = int(mine.int().argmax())
        if run and size % (3 * run) == 0 and torch.equal(mine, torch.arange(size) // run % 3 == 1):
            return Rows(axis, run)
    tokens = () if second.any() else second.shape
    return next((Rows(axis, 1) for axis, size in enumerate(tokens) if size == 3), None)


def beside(values: Tensor, x: Tensor, axis: int, rows: Rows | None) -> Tensor:
    """Values `[B, C]`, C or 1 channels, shaped to multiply x along an axis, each image by its own.

    Where the images are not apart in x, all of it has the values of the first one.
    """
    shape = [1] * x.ndim
    shape[axis] = values.shape[1]
    if rows is None or rows.axis == axis % x.ndim or x.shape[rows.axis] % (len(values) * rows.run):
        return values[:1].reshape(shape)
    shape[rows.axis] = x.shape[rows.axis]
    values = values[torch.arange(shape[rows.axis], device=x.device) // rows.run % len(values)]
    return (values if rows.axis < axis % x.ndim else values.t()).reshape(shape)
