"""Class numbers: 0 to K - 1, every one of them in the training data."""

from __future__ import annotations

import numpy as np

from search_spaces.errors import InvalidInput


def check_labels(labels: np.ndarray, what: str, num_images: int) -> np.ndarray:
    """Class numbers `[num_images]` as int64.

    Args:
        labels: integers `[num_images]` or `[num_images, 1]`.
        what: names them in messages.
        num_images: how many there must be.

    Raises:
        InvalidInput: another shape or type, or a negative number.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or len(labels) != num_images:
        raise InvalidInput(
            f"{what} must hold one class number for each of {num_images} images, got shape {list(labels.shape)}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise InvalidInput(
            f"{what} must be integers from 0 on, got {labels.dtype}; number the classes and save those"
        )
    if len(labels) and int(labels.min()) < 0:
        raise InvalidInput(f"{what} must be numbers from 0 on, got {int(labels.min())}")
    return labels.astype(np.int64)


def count_classes(train: np.ndarray, other: dict[str, np.ndarray], source: str) -> int:
    """How many classes there are: the training labels must be 0 to K - 1, the others among them.

    Raises:
        InvalidInput: no image, one class only, a number left out, or a class that training never sees.
    """
    if not len(train):
        raise InvalidInput(f"{source} holds no training image; give it some")
    present = np.unique(train)
    count = int(present[-1]) + 1
    if len(present) < count:
        first_gap = int(np.flatnonzero(present != np.arange(len(present)))[0])
        raise InvalidInput(
            f"the labels of {source} must be 0 to K - 1 without a gap, but {len(present)} classes go up to "
            f"{count - 1} and no image has label {first_gap}; number the classes from 0 on"
        )
    if count < 2:
        raise InvalidInput(f"{source} has one class only; to tell apart there must be two or more")
    for name, labels in other.items():
        if len(labels) and int(labels.max()) >= count:
            raise InvalidInput(
                f"the {name} labels of {source} go up to {int(labels.max())}, those of training only to {count - 1}; "
                "every class needs training images"
            )
    return count
