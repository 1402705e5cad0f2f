"""The splits of the data: what each is for, and what they must not share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from search_spaces.errors import InvalidInput
from subnet_search.data.memory import Batch, TensorBatches
from subnet_search.data.overlap import overlap

SPLITS = ("train", "search_val", "test", "gate", "calibration")


@dataclass(frozen=True)
class Splits:
    """The data of a run: re-iterables of (input `[B, ...]`, target `[B]`), such as DataLoaders.

    The supernet learns from `train` alone; search and choice look at `search_val`; `gate` is a share of the
    training data that the supernet never sees; `test` is read once, at the very end. `calibration` sets
    batch-norm statistics: training images without augmentation (default: `train`). `classes` are the names of
    the targets 0, 1, ..., where they are known.

    Raises:
        InvalidInput: a split that can be read only once, or two splits that visibly share images.
    """

    train: Iterable[Batch]
    search_val: Iterable[Batch]
    test: Iterable[Batch]
    gate: Iterable[Batch] | None = None
    calibration: Iterable[Batch] | None = None
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in SPLITS:
            split = getattr(self, name)
            if split is None and name in ("gate", "calibration"):
                continue
            reads = isinstance(split, Iterable) or hasattr(split, "__getitem__")
            if not reads or isinstance(split, Tensor | str):
                raise InvalidInput(
                    f"split {name!r} must hold (input, target) batches, got {type(split).__name__}"
                )
            if isinstance(split, Iterator):
                raise InvalidInput(
                    f"split {name!r} can be read only once, got {type(split).__name__}; "
                    "pass something that starts anew, such as a DataLoader or a list of batches"
                )
        self._refuse_overlap()
        if self.calibration is None:
            object.__setattr__(self, "calibration", self.train)

    def _refuse_overlap(self) -> None:
        apart = [name for name in SPLITS[:4] if getattr(self, name) is not None]
        for i, first in enumerate(apart):
            for second in apart[i + 1 :]:
                if overlap(getattr(self, first), getattr(self, second)):
                    raise InvalidInput(
                        f"splits {first!r} and {second!r} share images; results on them would be too good. "
                        "Split the data into disjoint parts"
                    )


def describe(splits: Splits) -> dict[str, int | None]:
    """The number of images in each split, where the split can tell."""
    return {name: _num_images(getattr(splits, name)) for name in SPLITS}


def _num_images(split: Any) -> int | None:
    if isinstance(split, TensorBatches):
        return len(split.images)
    if hasattr(split, "dataset"):
        return len(split.dataset) if hasattr(split.dataset, "__len__") else None
    return sum(len(batch[1]) for batch in split) if isinstance(split, list | tuple) else None
