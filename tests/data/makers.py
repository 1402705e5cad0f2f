"""Small data sets on disk for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_npz(path: Path, **arrays: object) -> str:
    """An .npz file as a data source."""
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return f"npz:{path}"


def images(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Random uint8 images `[count, *shape]`."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def write_folders(
    root: Path, classes: dict[str, int], shape: tuple[int, ...] = (10, 12, 3), seed: int = 0
) -> None:
    """PNG files, so many for each class, in root/CLASS/N.png."""
    for label, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for number, pixels in enumerate(images(count, *shape, seed=100 * seed + label)):
            Image.fromarray(pixels).save(root / name / f"{number}.png")
