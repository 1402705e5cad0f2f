"""The four splits of the data, and where they come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from search_spaces.errors import InvalidInput
from subnet_search.factories import call_factory
from subnet_search.settings import DataSettings

Batch = tuple[Tensor, Tensor]


class TensorBatches:
    """Images and labels held in memory, handed out in batches as often as asked.

    Args:
        images: `[num_images, C, H, W]`.
        labels: `[num_images]`.
        batch_size: images in a batch; the last one may be smaller.
        shuffle: draws a new order from torch's global generator each time; `train` seeds it per epoch.
    """

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, shuffle: bool = False) -> None:
        if len(images) != len(labels):
            raise InvalidInput(f"every image needs one label, got {len(images)} images, {len(labels)} labels")
        if not len(images):
            raise InvalidInput("a split needs at least one image, got none; choose larger shares")
        self.images, self.labels = images, labels
        self.batch_size, self.shuffle = batch_size, shuffle

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.images)) if self.shuffle else torch.arange(len(self.images))
        for chosen in order.split(self.batch_size):
            yield self.images[chosen], self.labels[chosen]


@dataclass(frozen=True)
class Splits:
    """The data of a run: re-iterables of (input `[B, ...]`, target `[B]`), such as DataLoaders.

    The supernet learns from `train` alone; search and choice look at `search_val`; `gate` is a share of the
    training data that the supernet never sees; `test` is read once, at the very end. `calibration` sets
    batch-norm statistics: training images without augmentation (default: `train`).

    Raises:
        InvalidInput: a split that can be read only once, or two splits that visibly share images.
    """

    train: Iterable[Batch]
    search_val: Iterable[Batch]
    test: Iterable[Batch]
    gate: Iterable[Batch] | None = None
    calibration: Iterable[Batch] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            split = getattr(self, field.name)
            if split is None and field.name in ("gate", "calibration"):
                continue
            reads = isinstance(split, Iterable) or hasattr(split, "__getitem__")
            if not reads or isinstance(split, Tensor | str):
                raise InvalidInput(
                    f"split {field.name!r} must hold (input, target) batches, got {type(split).__name__}"
                )
            if isinstance(split, Iterator):
                raise InvalidInput(
                    f"split {field.name!r} can be read only once, got {type(split).__name__}; "
                    "pass something that starts anew, such as a DataLoader or a list of batches"
                )
        self._refuse_overlap()
        if self.calibration is None:
            object.__setattr__(self, "calibration", self.train)

    def _refuse_overlap(self) -> None:
        apart = [name for name in ("train", "search_val", "test", "gate") if getattr(self, name) is not None]
        for i, first in enumerate(apart):
            for second in apart[i + 1 :]:
                if _overlap(getattr(self, first), getattr(self, second)):
                    raise InvalidInput(
                        f"splits {first!r} and {second!r} share images; results on them would be too good. "
                        "Split the data into disjoint parts"
                    )


def load_splits(settings: DataSettings) -> Splits:
    """The splits that a recipe's [data] table asks for.

    Raises:
        InvalidInput: an unknown source, or a factory that cannot be imported, fails or returns no `Splits`.
    """
    if settings.source == "digits":
        return digits(settings)
    if ":" not in settings.source:
        raise InvalidInput(f'source must be "digits" or "package.module:factory", got {settings.source!r}')
    return call_factory(settings.source, settings.options, Splits, "data source")


def digits(settings: DataSettings) -> Splits:
    """The 1,797 handwritten digits that ship with scikit-learn, `[B, 1, 8, 8]`, grey in -1 to 1."""
    from sklearn.datasets import load_digits

    pixels, numbers = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 8 - 1, dtype=torch.float32).reshape(-1, 1, 8, 8)
    labels = torch.tensor(numbers, dtype=torch.int64)
    parts = split_indices(numbers, settings)

    def batches(name: str, shuffle: bool = False) -> TensorBatches:
        return TensorBatches(images[parts[name]], labels[parts[name]], settings.batch_size, shuffle)

    gate = batches("gate") if len(parts["gate"]) else None
    return Splits(batches("train", True), batches("search_val"), batches("test"), gate, batches("train"))


def split_indices(labels: np.ndarray, settings: DataSettings) -> dict[str, np.ndarray]:
    """Seeded, stratified, disjoint index sets that cover every image.

    Args:
        labels: `[num_images]` class of each image.
        settings: the shares and the seed.

    Returns:
        "train", "search_val", "test" and "gate" (perhaps empty), ascending indices each.
    """
    if settings.test_share + settings.search_val_share >= 1:
        raise InvalidInput(
            "test_share and search_val_share must leave something to train on, "
            f"got {settings.test_share} + {settings.search_val_share}; choose smaller shares"
        )
    rng = np.random.default_rng(settings.seed)
    parts: dict[str, list[np.ndarray]] = {"test": [], "search_val": [], "gate": [], "train": []}
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        num_test = round(settings.test_share * len(members))
        num_val = round(settings.search_val_share * len(members))
        num_gate = round(settings.gate_share * (len(members) - num_test - num_val))
        cuts = np.cumsum([num_test, num_val, num_gate])
        for name, part in zip(parts, np.split(members, cuts), strict=True):
            parts[name].append(part)
    return {name: np.sort(np.concatenate(part)) for name, part in parts.items()}


def describe(splits: Splits) -> dict[str, int | None]:
    """The number of images in each split, where the split can tell."""
    return {field.name: _num_images(getattr(splits, field.name)) for field in fields(splits)}


def _num_images(split: Any) -> int | None:
    if isinstance(split, TensorBatches):
        return len(split.images)
    if hasattr(split, "dataset"):
        return len(split.dataset) if hasattr(split.dataset, "__len__") else None
    return sum(len(batch[1]) for batch in split) if isinstance(split, list | tuple) else None


def _overlap(first: Any, second: Any) -> bool:
    """Whether two splits visibly read the same images."""
    (a, rows_a), (b, rows_b) = _rows(first), _rows(second)
    if a is not b:
        return not _tensors(first).isdisjoint(_tensors(second))
    if rows_a is None or rows_b is None:
        return rows_a is rows_b is None or len(rows_a or rows_b or ()) > 0
    return not rows_a.isdisjoint(rows_b)


def _rows(split: Any) -> tuple[Any, set[int] | None]:
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
