"""Images held in memory, handed out in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from search_spaces.errors import InvalidInput
from subnet_search.data.preprocess import Preprocess

Batch = tuple[Tensor, Tensor]


class TensorBatches:
    """Images and labels held in memory, handed out in batches as often as asked.

    Args:
        images: `[num_images, C, H, W]`.
        labels: `[num_images]`.
        batch_size: images in a batch; the last one may be smaller.
        shuffle: draws a new order from torch's global generator each time; `train` seeds it per epoch. A last batch
            of one image, from which batch norm cannot learn, is left out then: another image in each epoch.
        prepare: is called with the images of each batch, for normalisation and augmentation.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        shuffle: bool = False,
        prepare: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if len(images) != len(labels):
            raise InvalidInput(f"every image needs one label, got {len(images)} images, {len(labels)} labels")
        if not len(images):
            raise InvalidInput("a split needs at least one image, got none; choose larger shares")
        self.images, self.labels = images, labels
        self.batch_size, self.shuffle, self.prepare = batch_size, shuffle, prepare

    def __len__(self) -> int:
        return -(-self._num_drawn() // self.batch_size)

    def _num_drawn(self) -> int:
        count = len(self.images)
        return count - 1 if self.shuffle and leaves_one(count, self.batch_size) else count

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.images)) if self.shuffle else torch.arange(len(self.images))
        order = order[: self._num_drawn()]
        for chosen in order.split(self.batch_size):
            images = self.images[chosen]
            yield images if self.prepare is None else self.prepare(images), self.labels[chosen]


def leaves_one(num_images: int, batch_size: int) -> bool:
    """Whether the last of several batches holds one image."""
    return num_images > batch_size and num_images % batch_size == 1


@dataclass(frozen=True)
class MemoryImages:
    """A pool of raw images in memory, from which splits are cut.

    `images` `[num_images, C, H, W]` are uint8 or float, `labels` `[num_images]` integers.
    """

    images: Tensor
    labels: np.ndarray

    def take(self, rows: np.ndarray) -> MemoryImages:
        """The images of those rows, in that order."""
        return MemoryImages(self.images[torch.from_numpy(rows)], self.labels[rows])

    def batches(self, batch_size: int, preprocess: Preprocess, shuffle: bool = False) -> TensorBatches:
        """All of them in batches; `preprocess` makes of each batch what the network reads."""
        labels = torch.from_numpy(self.labels.astype(np.int64))
        return TensorBatches(self.images, labels, batch_size, shuffle, preprocess)
