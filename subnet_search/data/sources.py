"""The places a recipe's [data] table can name."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping

import numpy as np
import torch

from search_spaces.errors import InvalidInput
from subnet_search.data.arrays import check_alike, pools_of, read_npz
from subnet_search.data.assemble import assemble
from subnet_search.data.folders import read_folders
from subnet_search.data.memory import MemoryImages, TensorBatches
from subnet_search.data.preprocess import checked, make_preprocess
from subnet_search.data.published import read_published
from subnet_search.data.shares import split_indices
from subnet_search.data.splits import Splits
from subnet_search.factories import call_factory
from subnet_search.settings import DataSettings, ModelSettings


def load_splits(settings: DataSettings, model: ModelSettings | None = None) -> Splits:
    """The splits that a recipe's [data] table asks for.

    Args:
        settings: the table; a relative path starts at the working folder.
        model: the [model] table, for `preprocess = "weights"`.

    Raises:
        InvalidInput: an unknown source, data that cannot be used, or a factory that fails or returns no `Splits`.
    """
    kind, _, place = settings.source.partition(":")
    if settings.source != "digits" and not place:
        raise InvalidInput(
            'source must be "digits", "npz:PATH", "imagefolder:PATH", "torchvision:NAME" or '
            f'"package.module:factory", got {settings.source!r}'
        )
    if kind in SOURCES:
        if kind != "torchvision":
            _refuse(settings, ("options",))
        return SOURCES[kind](os.path.expandvars(os.path.expanduser(place)), settings, model)
    _refuse(settings, ("preprocess", "size", "channels", "mean", "std", "augment"))
    if settings.source == "digits":
        return digits(settings)
    splits = call_factory(settings.source, settings.options, Splits, "data source")
    return dataclasses.replace(splits, classes=settings.classes or splits.classes)


def _refuse(settings: DataSettings, without_effect: tuple[str, ...]) -> None:
    for name in without_effect:
        if getattr(settings, name) != DataSettings.model_fields[name].default:
            raise InvalidInput(f"{name} has no effect on the data source {settings.source!r}; leave it out")


def splits_from_arrays(
    arrays: Mapping[str, np.ndarray],
    settings: DataSettings,
    model: ModelSettings | None = None,
    source: str = "the arrays",
) -> Splits:
    """Splits of images in memory, for data sources of your own.

    Args:
        arrays: x_train, y_train and perhaps x_test, y_test, x_val, y_val; or x and y, see `pools_of`.
        settings: shares, seed, size, mean, std, augmentation; floats without mean and std are taken as they are.
        model: the [model] table, for `preprocess = "weights"`.
        source: where they are from, for messages.

    Raises:
        InvalidInput: the arrays are no labelled images, or do not fit the settings.
    """
    chosen = settings.mean is not None or settings.std is not None
    pools, preprocess = pools_of(arrays, source, scaled=chosen), make_preprocess(settings, model)
    check_alike(
        pools, source, any_size=preprocess.crop is not None, any_colour=preprocess.channels is not None
    )
    images = pools["train"].images
    if images.is_floating_point() and not chosen and settings.preprocess == "recipe":
        preprocess = dataclasses.replace(preprocess, mean=(0.0,), std=(1.0,))
    return assemble(pools, settings, checked(preprocess, images.shape[1]), source)


def from_npz(path: str, settings: DataSettings, model: ModelSettings | None) -> Splits:
    """The arrays of an .npz file."""
    return splits_from_arrays(read_npz(path), settings, model, path)


def from_folders(path: str, settings: DataSettings, model: ModelSettings | None) -> Splits:
    """The pictures in folders, see `read_folders`."""
    preprocess = checked(make_preprocess(settings, model), 3)
    pools, classes = read_folders(path, preprocess, settings.workers)
    return assemble(pools, settings, preprocess, path, classes)


def from_torchvision(name: str, settings: DataSettings, model: ModelSettings | None) -> Splits:
    """A data set of torchvision, see `read_published`."""
    preprocess = make_preprocess(settings, model)
    pools, classes = read_published(name, settings.options, settings.download, preprocess, settings.workers)
    train = pools["train"]
    channels = train.images.shape[1] if isinstance(train, MemoryImages) else 3
    return assemble(pools, settings, checked(preprocess, channels), f"torchvision:{name}", classes)


SOURCES: dict[str, Callable[[str, DataSettings, ModelSettings | None], Splits]] = {
    "npz": from_npz,
    "imagefolder": from_folders,
    "torchvision": from_torchvision,
}


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
    names = settings.classes or tuple(map(str, range(10)))
    return Splits(
        batches("train", True), batches("search_val"), batches("test"), gate, batches("train"), names
    )
