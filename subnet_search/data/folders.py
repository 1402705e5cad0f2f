"""Images in folders: one folder for each class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from search_spaces.errors import InvalidInput
from subnet_search.data.pictures import FileReader, PicturePool, Pictures
from subnet_search.data.preprocess import Preprocess

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
FOLDERS_OF = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def read_folders(
    path: str | Path, preprocess: Preprocess, workers: int = 0
) -> tuple[dict[str, PicturePool], tuple[str, ...]]:
    """The pools of pictures in PATH/train, PATH/val and PATH/test, or in PATH itself, and the classes' names.

    Each of these holds one folder for each class, with images at any depth; names in alphabetical order are the
    classes 0, 1, ....

    Raises:
        InvalidInput: no such folder, a class without images, or one that training has not.
    """
    root = Path(path)
    if not root.is_dir():
        raise InvalidInput(f"there is no folder {root}; check the path")
    parts = {part: found for part, names in FOLDERS_OF.items() if (found := _split_folder(root, names))}
    if "train" not in parts:
        if parts:
            raise InvalidInput(
                f"{root} has {', '.join(sorted(folder.name for folder in parts.values()))} but no folder train with "
                "a folder for each class; add it"
            )
        parts = {"train": root}
    classes = _subfolders(parts["train"])
    if not classes:
        raise InvalidInput(
            f"{parts['train']} must hold a folder for each class, got none; sort the images so"
        )
    for folder in parts.values():
        if unknown := sorted(set(_subfolders(folder)) - set(classes)):
            raise InvalidInput(
                f"{folder / unknown[0]} is a class without training images; the classes are {classes}"
            )
    pools = {}
    for part, folder in parts.items():
        pictures = _pictures(folder, classes, preprocess, all_classes=part == "train")
        pools[part] = PicturePool(pictures, np.arange(len(pictures)), workers)
    return pools, tuple(classes)


def _split_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    """The folder of a split; one without folders in it is a class that happens to be called so."""
    return next((root / name for name in names if (root / name).is_dir() and _subfolders(root / name)), None)


def _subfolders(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    except OSError as error:
        raise InvalidInput(f"the folder {folder} cannot be read: {error}") from None


def _pictures(folder: Path, classes: list[str], preprocess: Preprocess, all_classes: bool) -> Pictures:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _images_in(folder / name)
        if not found and all_classes:
            raise InvalidInput(
                f"{folder / name} holds no image ({', '.join(ENDINGS)}); add some or delete it"
            )
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise InvalidInput(f"{folder} holds no image ({', '.join(ENDINGS)}) in its folders; add some")
    return Pictures(FileReader(paths), np.array(labels), preprocess)


def _images_in(folder: Path) -> list[str]:
    """All images below a folder, each folder read once, however many links lead to it."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # test may lack a class
            raise InvalidInput(f"the folder {error.filename} cannot be read: {error}") from None

    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(place)
        if (known := (status.st_dev, status.st_ino)) in seen and status.st_ino:
            folders.clear()
            continue
        seen.add(known)
        images = (name for name in names if name.lower().endswith(ENDINGS) and not name.startswith("."))
        found += [os.path.join(place, name) for name in images]
    return sorted(found)
