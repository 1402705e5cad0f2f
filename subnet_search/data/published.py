"""The classification data sets of torchvision, by name."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from search_spaces.errors import InvalidInput, nearest_names
from subnet_search.data.arrays import as_images
from subnet_search.data.labels import check_labels
from subnet_search.data.memory import MemoryImages
from subnet_search.data.pictures import PicturePool, Pictures
from subnet_search.data.preprocess import Preprocess
from subnet_search.factories import torchvision_part

SPLIT_WORDS = {"train": ("train", "trainval"), "val": ("val", "valid"), "test": ("test",)}


@dataclass(frozen=True)
class ItemReader:
    """Gives the pictures of a data set of (picture, class number) items."""

    items: Any
    source: str

    def __call__(self, row: int) -> Any:
        """The picture of that row."""
        return self.items[row][0]

    def name(self, row: int) -> str:
        """For messages."""
        return f"image {row} of {self.source}"


def read_published(
    name: str, options: Mapping[str, Any], download: bool, preprocess: Preprocess, workers: int = 0
) -> tuple[dict[str, MemoryImages | PicturePool], tuple[str, ...] | None]:
    """The pools of a data set "CIFAR10", "FashionMNIST", ... as it is split itself, and its classes' names.

    Args:
        name: of a class in `torchvision.datasets` whose items are (picture, class number).
        options: its arguments; `root` is the folder it lies in (default "data").
        download: lets torchvision fetch it if it is not there.
        preprocess: channels and size, for sets that are not in memory.
        workers: processes that read such sets.

    Raises:
        InvalidInput: torchvision is broken, has no such set, or the set is not there or no such set.
    """
    make = _maker(name)
    if "download" in options:
        raise InvalidInput("download is a key of [data] itself, got it among the options; move it there")
    wanted = {"root": "data", **options}
    known = _arguments(make)
    arguments = {key: wanted[key] for key in wanted if key in known or (key in options and key != "root")}
    if "root" in arguments:
        arguments["root"] = os.path.expandvars(os.path.expanduser(str(arguments["root"])))
    if "download" in known:
        arguments["download"] = download
    sets = {part: made for part in SPLIT_WORDS if (made := _make(make, arguments, known, part, options))}
    if "train" not in sets:
        raise InvalidInput(f"torchvision:{name} has no training images; choose another data set")
    if "test" not in sets and "val" in sets and "split" in known:
        sets["test"] = sets.pop("val")
    pools = {part: _pool(items, f"torchvision:{name}", preprocess, workers) for part, items in sets.items()}
    return pools, _classes(sets["train"])


def _maker(name: str) -> Callable[..., Any]:
    datasets = torchvision_part("datasets")
    known = [entry for entry in datasets.__all__ if isinstance(getattr(datasets, entry), type)]
    if name not in known:
        raise InvalidInput(
            f"torchvision has no data set {name!r}{nearest_names(name, known) or f'; known are {known}'}"
        )
    made: Callable[..., Any] = getattr(datasets, name)
    return made


def _arguments(make: Any) -> set[str]:
    """Names of the arguments that a class takes, those it hands on to the class it is made from included."""
    found: set[str] = set()
    for kind in make.__mro__:
        parameters = inspect.signature(kind.__init__).parameters
        found |= parameters.keys()
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            break
    return found - {"self", "args", "kwargs"}


def _make(
    make: Any, arguments: dict[str, Any], known: set[str], part: str, options: Mapping[str, Any]
) -> Any:
    """The part of a data set; None where it has no such part."""
    if "train" in known and "train" not in options:
        choices: list[dict[str, Any]] = [{"train": part == "train"}] if part != "val" else []
    elif "split" in known and "split" not in options:
        choices = [{"split": word} for word in SPLIT_WORDS[part]]
    else:
        choices = [{}] if part == "train" else []
    for choice in choices:
        try:
            return make(**arguments, **choice)
        except ValueError as error:
            if "split" not in choice:
                raise _unusable(make, arguments, error) from error
        except Exception as error:  # files, archives and downloads raise many kinds
            raise _unusable(make, arguments, error) from error
    return None


def _unusable(make: Any, arguments: dict[str, Any], error: Exception) -> InvalidInput:
    way_out = "check the options in [data]"
    if arguments.get("download"):
        way_out = "check the connection and the room on the disk, or put its files there yourself"
    elif "download" in arguments and not isinstance(error, TypeError | ValueError):
        way_out = (
            "put its files there, set the folder with [data] options = { root = ... }, or allow torchvision to fetch "
            "it with [data] download = true"
        )
    shown = {key: value for key, value in arguments.items() if key != "download"}
    told = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InvalidInput(f"torchvision's {make.__name__} with {shown} cannot be had: {told}; {way_out}")


def _pool(items: Any, source: str, preprocess: Preprocess, workers: int) -> MemoryImages | PicturePool:
    labels = check_labels(_labels(items, source), f"labels of {source}", len(items))
    data = getattr(items, "data", None)
    if data is not None and getattr(data, "ndim", 0) in (3, 4) and len(data) == len(labels):
        return MemoryImages(as_images(np.asarray(data), source), labels)
    pictures = Pictures(ItemReader(items, source), labels, preprocess)
    return PicturePool(pictures, np.arange(len(items)), workers)


def _labels(items: Any, source: str) -> np.ndarray:
    """The class number of every item, read off where the set keeps them, else item by item."""
    for name in ("targets", "labels", "_labels"):
        kept = getattr(items, name, None)
        if kept is not None and len(kept) == len(items):
            return np.asarray(kept)
    try:
        return np.array([label for _, label in (items[row] for row in range(len(items)))])
    except Exception as error:  # what is no such set can fail anywhere
        raise InvalidInput(
            f"{source} must give (picture, class number) items: {type(error).__name__}: {error}; choose a data set for "
            "classification"
        ) from error


def _classes(items: Any) -> tuple[str, ...] | None:
    names = getattr(items, "classes", None)
    whole = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return tuple(names) if whole and names is not None else None
