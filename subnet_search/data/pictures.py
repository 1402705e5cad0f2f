"""Image files read one by one: decoded, sized, and put together to batches, by worker processes if wished."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from search_spaces.errors import InvalidInput
from subnet_search.data.memory import Batch, leaves_one
from subnet_search.data.preprocess import Preprocess, shorter_side

if TYPE_CHECKING:
    from PIL.Image import Image

NAMED = 3  # broken files that a message names
ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}  # of whole files, by format
TAIL_BYTES = 64


@dataclass(frozen=True)
class Unreadable:
    """Stands for an image that cannot be read: worker processes hand on values better than exceptions."""

    reason: str


class Reader(Protocol):
    """Gives the picture of a row; what it raises names nothing, `name` does."""

    def __call__(self, row: int) -> Image:
        """The picture of that row."""

    def name(self, row: int) -> str:
        """For messages."""


@dataclass(frozen=True)
class FileReader:
    """Opens image files by row."""

    paths: Sequence[str]

    def __call__(self, row: int) -> Image:
        """The picture of that row, opened and not yet decoded."""
        from PIL import Image

        return Image.open(self.paths[row])

    def name(self, row: int) -> str:
        """The file."""
        return self.paths[row]

    def size(self, row: int) -> tuple[int, int]:
        """Width and height; raises for what is no whole image of 8 bits, decoding it only where its end is unusual."""
        with self(row) as picture:
            check_depth(picture)
            if not self._ends_well(row, picture.format):
                picture.load()
            return picture.size

    def _ends_well(self, row: int, kind: str | None) -> bool:
        with open(self.paths[row], "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return kind in ENDS and ENDS[kind] in file.read()


class Pictures(Dataset[tuple[Any, int]]):
    """Pictures with class numbers, decoded when they are asked for.

    Args:
        read: gives the picture of a row.
        labels: `[num_images]`.
        preprocess: its channels and size are applied to each picture; grey only if it asks for one channel.
    """

    def __init__(self, read: Reader, labels: np.ndarray, preprocess: Preprocess) -> None:
        self.read, self.labels, self.preprocess = read, labels, preprocess

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor | Unreadable, int]:
        try:
            pixels: Tensor | Unreadable = to_pixels(self.read(row), self.preprocess)
        except Exception as error:  # decoders raise many kinds
            reason = f"{self.read.name(row)} cannot be read: {error or type(error).__name__}"
            pixels = Unreadable(f"{reason}; mend or delete it")
        return pixels, int(self.labels[row])

    def sizes(self) -> set[tuple[int, int]]:
        """Width and height of the pictures in all files; nothing for pictures from elsewhere.

        Raises:
            InvalidInput: files that are no images, torn ones and those of another depth included.
        """
        found: set[tuple[int, int]] = set()
        broken: list[str] = []
        if not isinstance(self.read, FileReader):
            return found
        for row in range(len(self)):
            try:
                found.add(self.read.size(row))
            except Exception as error:  # decoders raise many kinds
                name, told = self.read.name(row), str(error).splitlines()
                broken.append(f"{name} ({type(error).__name__ if not told or name in told[0] else told[0]})")
        if broken:
            more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
            raise InvalidInput(
                f"{len(broken)} of {len(self)} images cannot be read: {', '.join(broken[:NAMED])}{more}; "
                "mend or delete them"
            )
        return found


def paths_of(pictures: Pictures) -> Sequence[str]:
    """The files of pictures; none for pictures from elsewhere."""
    return pictures.read.paths if isinstance(pictures.read, FileReader) else ()


def check_depth(picture: Image) -> None:
    """Raises `InvalidInput` for pixels of 16 bits and more, which Pillow would cut off at 255."""
    if picture.mode.startswith(("I", "F")):
        raise InvalidInput(f"pixels of more than 8 bits, mode {picture.mode}")


def to_pixels(picture: Image, preprocess: Preprocess) -> Tensor:
    """Decodes and sizes a picture: uint8 `[C, H, W]`."""
    from PIL.Image import Resampling

    check_depth(picture)
    picture = picture.convert("L" if preprocess.channels == 1 else "RGB")
    width, height = picture.size
    if preprocess.resize is not None and min(width, height) != preprocess.resize:
        height, width = shorter_side(height, width, preprocess.resize)
        picture = picture.resize((width, height), Resampling[preprocess.interpolation.upper()])
    if preprocess.crop is not None:
        top, left = round((height - preprocess.crop) / 2), round((width - preprocess.crop) / 2)
        picture = picture.crop((left, top, left + preprocess.crop, top + preprocess.crop))
    pixels = torch.from_numpy(np.array(picture, dtype=np.uint8))  # [H, W] or [H, W, C]
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class Collate:
    """Puts sized pictures together and makes them ready; gives an `Unreadable` back instead if one is among them."""

    prepare: Callable[[Tensor], Tensor]

    def __call__(self, items: list[tuple[Any, int]]) -> Batch | Unreadable:
        """One batch of (images `[B, C, H, W]`, labels `[B]`)."""
        for pixels, _ in items:
            if isinstance(pixels, Unreadable):
                return pixels
        sizes = {tuple(pixels.shape) for pixels, _ in items}
        if len(sizes) > 1:
            first, second = sorted(sizes)[:2]
            return Unreadable(
                f"images of one batch must have one size, got {list(first)} and {list(second)}; set size in [data]"
            )
        images = torch.stack([pixels for pixels, _ in items])
        return self.prepare(images), torch.tensor([label for _, label in items])


class PictureLoader(DataLoader[Any]):
    """A DataLoader that names the image that cannot be read."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return map(_readable, super().__iter__())


def _readable(batch: Batch | Unreadable) -> Batch:
    if isinstance(batch, Unreadable):
        raise InvalidInput(batch.reason)
    return batch


@dataclass(frozen=True)
class PicturePool:
    """A pool of pictures, from which splits are cut; `rows` are those that belong to it."""

    pictures: Pictures
    rows: np.ndarray
    workers: int = 0

    @property
    def labels(self) -> np.ndarray:
        """Class numbers `[num_images]`."""
        chosen: np.ndarray = self.pictures.labels[self.rows]
        return chosen

    def take(self, rows: np.ndarray) -> PicturePool:
        """The pictures of those rows, in that order."""
        return dataclasses.replace(self, rows=self.rows[rows])

    def batches(self, batch_size: int, preprocess: Preprocess, shuffle: bool = False) -> PictureLoader:
        """All of them in batches; pictures come sized already."""
        prepare = dataclasses.replace(preprocess, resize=None, crop=None)
        return PictureLoader(
            Subset(self.pictures, self.rows.tolist()),
            batch_size,
            shuffle,
            drop_last=shuffle
            and leaves_one(len(self.rows), batch_size),  # batch norm cannot learn from one image
            num_workers=self.workers,
            collate_fn=Collate(prepare),
        )
