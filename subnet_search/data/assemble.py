"""From pools of raw images to the splits of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar

import numpy as np

from search_spaces.errors import InvalidInput
from subnet_search.data.labels import count_classes
from subnet_search.data.memory import Batch
from subnet_search.data.preprocess import Preprocess
from subnet_search.data.shares import split_indices
from subnet_search.data.splits import Splits
from subnet_search.settings import DataSettings

Self = TypeVar("Self", bound="Pool")


class Pool(Protocol):
    """Raw images with labels `[num_images]`; parts of it are taken by row numbers and handed out in batches."""

    @property
    def labels(self) -> np.ndarray:
        """Class numbers."""

    def take(self: Self, rows: np.ndarray) -> Self:
        """The images of those rows, in that order."""

    def batches(self, batch_size: int, preprocess: Preprocess, shuffle: bool = False) -> Iterable[Batch]:
        """All of them in batches."""


def assemble(
    pools: Mapping[str, Pool],
    settings: DataSettings,
    preprocess: Preprocess,
    source: str,
    classes: tuple[str, ...] | None = None,
) -> Splits:
    """The splits: "val" and "test" as the source has them, everything else cut from "train" by shares.

    Training images lie in a seeded random order, so that the first so many of `calibration`, the same images
    without augmentation, are of all classes even where the source is sorted.

    Args:
        pools: "train", perhaps "val" and "test".
        settings: shares, seed, batch size and the names of the classes.
        preprocess: for training; its plain form is for all other splits.
        source: where the images are from, for messages.
        classes: the source's own names.

    Raises:
        InvalidInput: labels that are not 0 to K - 1, another number of names, or a split without images.
    """
    train = pools["train"]
    others = {name: pool.labels for name, pool in pools.items() if name != "train"}
    count = count_classes(train.labels, others, source)
    given = {{"val": "search_val"}.get(name, name): pool for name, pool in pools.items() if name != "train"}
    rows = split_indices(train.labels, settings, given)
    for name in ("train", "search_val", "test"):
        if name not in given and not len(rows[name]):
            raise InvalidInput(
                f"{len(train.labels)} images of {source} leave none for {name!r}; choose other shares"
            )
    rows["train"] = np.random.default_rng(settings.seed).permutation(rows["train"])
    parts: dict[str, Pool] = {name: train.take(rows[name]) for name in rows if len(rows[name])} | given

    def batches(name: str) -> Iterable[Batch]:
        return parts[name].batches(settings.batch_size, preprocess.plain())

    return Splits(
        train=parts["train"].batches(settings.batch_size, preprocess, shuffle=True),
        search_val=batches("search_val"),
        test=batches("test"),
        gate=batches("gate") if "gate" in parts else None,
        calibration=batches("train"),
        classes=class_names(settings.classes or classes, count, source),
    )


def class_names(names: tuple[str, ...] | None, count: int, source: str) -> tuple[str, ...] | None:
    """The names, if there are as many as classes.

    Raises:
        InvalidInput: there are more or fewer.
    """
    if names and len(names) != count:
        raise InvalidInput(
            f"classes must name each of the {count} classes of {source}, got {len(names)} names"
        )
    return names or None
