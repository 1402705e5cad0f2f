"""Images and labels from arrays, such as those of an .npz file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from search_spaces.errors import InvalidInput
from subnet_search.data.labels import check_labels
from subnet_search.data.memory import MemoryImages

PARTS = ("train", "val", "test")
UNSCALED = 20.0  # normalised pixels stay far below, pixels up to 255 are above


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file that `pools_of` knows by name; nothing in it is unpickled.

    Raises:
        InvalidInput: the file is missing or damaged, or holds no such arrays.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is one array, not an .npz archive")
        with archive:
            present = list(archive.files)
            found = {name: archive[name] for name in present if name in NAMES}
        if foreign := [name for name, array in found.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{foreign[0]} is not an array")
    except FileNotFoundError:
        raise InvalidInput(f"there is no data file {path}; check the path") from None
    except Exception as error:  # a broken zip archive raises many kinds
        raise InvalidInput(
            f"the data file {path} cannot be read: {error or type(error).__name__}; save it again with numpy.savez, "
            "as plain arrays"
        ) from error
    if found.keys().isdisjoint({"x", "x_train"}):
        raise InvalidInput(f"{path} {_RULE}; it holds {', '.join(present) or 'nothing'}")
    return found


NAMES = {"x", "y", *(f"{kind}_{part}" for kind in "xy" for part in PARTS)}
_RULE = "must hold x_train and y_train (and x_test, y_test, x_val, y_val), or x and y"


def pools_of(arrays: Mapping[str, np.ndarray], source: str, scaled: bool = False) -> dict[str, MemoryImages]:
    """The pools of images in x_train, y_train, x_test, y_test, x_val, y_val; or in x and y alone.

    Args:
        arrays: images `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`, uint8 or float; labels `[N]`, integers.
        source: where they are from, for messages.
        scaled: float values of any size are allowed, because mean and std are given.

    Returns:
        "train", and "val" and "test" where they are given.

    Raises:
        InvalidInput: they are no such arrays.
    """
    if "x" in arrays and "x_train" in arrays:
        raise InvalidInput(f"{source} holds both x and x_train; leave one of them out")
    endings = {part: f"_{part}" for part in PARTS} | ({"train": ""} if "x" in arrays else {})
    if f"x{endings['train']}" not in arrays:
        raise InvalidInput(f"{source} {_RULE}; got {', '.join(arrays) or 'nothing'}")
    return {part: _pool(arrays, end, source, scaled) for part, end in endings.items() if f"x{end}" in arrays}


def _pool(arrays: Mapping[str, np.ndarray], ending: str, source: str, scaled: bool) -> MemoryImages:
    x, y = f"x{ending}", f"y{ending}"
    if y not in arrays:
        raise InvalidInput(f"{source} holds {x} but no labels {y}; add them")
    images = as_images(arrays[x], f"{x} of {source}", scaled)
    return MemoryImages(images, check_labels(arrays[y], f"{y} of {source}", len(images)))


def as_images(array: np.ndarray, what: str, scaled: bool = False) -> torch.Tensor:
    """Images of any usual layout as `[N, C, H, W]`, uint8 or float32; `what` names them in messages."""
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4:
        last, second = (0 < array.shape[axis] <= 4 for axis in (3, 1))
        if last == second:
            raise InvalidInput(
                f"{what} must be [N, H, W, C] or [N, C, H, W] with 1 to 4 channels, got {list(array.shape)}"
            )
        array = array.transpose(0, 3, 1, 2) if last else array
    if array.ndim != 4 or 0 in array.shape[1:]:
        raise InvalidInput(
            f"{what} must be images [N, H, W], [N, H, W, C] or [N, C, H, W], got shape {list(array.shape)}"
        )
    if not len(array):
        raise InvalidInput(f"{what} holds no image; leave the array out, or fill it")
    if np.issubdtype(array.dtype, np.floating):
        return _floats(array, what, scaled)
    if not np.issubdtype(array.dtype, np.integer):
        raise InvalidInput(f"{what} must be uint8 from 0 to 255, or float, got {array.dtype}")
    if array.min() < 0 or array.max() > 255:
        came = f"{array.dtype} from {array.min()} to {array.max()}"
        raise InvalidInput(f"{what} must be uint8 from 0 to 255, or float, got {came}")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.uint8))


def _floats(array: np.ndarray, what: str, scaled: bool) -> torch.Tensor:
    largest = float(np.abs(array).max())
    if not np.isfinite(largest):
        raise InvalidInput(f"{what} holds NaN or infinity; mend the data")
    if largest > UNSCALED and not scaled:
        raise InvalidInput(
            f"{what} is float with values up to {largest:.4g}; divide by 255, save uint8, or give mean and std"
        )
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def check_alike(pools: Mapping[str, MemoryImages], source: str, *, any_size: bool, any_colour: bool) -> None:
    """Raises `InvalidInput` unless val and test images are like those of training.

    Args:
        pools: as `pools_of` gives them.
        source: where they are from, for messages.
        any_size: height and width may differ, because all are resized.
        any_colour: the number of channels may differ, because all are converted.
    """
    train = pools["train"].images
    for part, pool in pools.items():
        images = pool.images
        if images.dtype != train.dtype:
            raise InvalidInput(
                f"x_{part} of {source} must be of the type of x_train, got {images.dtype} and {train.dtype}; "
                "save all as uint8"
            )
        (channels, *size), (wanted, *wanted_size) = images.shape[1:], train.shape[1:]
        if (size != wanted_size and not any_size) or (channels != wanted and not any_colour):
            raise InvalidInput(
                f"images in x_{part} of {source} must be as large as in x_train, got {list(images.shape[1:])} and "
                f"{list(train.shape[1:])} (channels, height, width); set size or channels in [data]"
            )
