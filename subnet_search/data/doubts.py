"""What is strange about splits and yet allowed: classes that a split lacks, images that are in two splits."""

from __future__ import annotations

import hashlib

import numpy as np
from torch import Tensor

from search_spaces.errors import InvalidInput
from subnet_search.data.fit import labels_of
from subnet_search.data.memory import TensorBatches
from subnet_search.data.splits import Splits

JUDGED = ("search_val", "test")  # what is measured on them is told
NAMED = 3  # classes that a message names


def doubts(splits: Splits) -> list[str]:
    """Sentences about what makes results mean less; labels and images are looked at where they are at hand.

    Raises:
        InvalidInput: a split holds nothing but copies of another one's images.
    """
    return [*_missing_classes(splits), *_copies(splits)]


def _missing_classes(splits: Splits) -> list[str]:
    trained, told = labels_of(splits.train), []
    for name in JUDGED:
        labels = labels_of(getattr(splits, name))
        if trained is None or labels is None or not (missing := np.setdiff1d(trained, labels).tolist()):
            continue
        names = [str(label if splits.classes is None else splits.classes[label]) for label in missing]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        told.append(
            f"split {name!r} has no image of {', '.join(names[:NAMED])}{more}: its results say nothing about that"
        )
    return told


def _copies(splits: Splits) -> list[str]:
    seen: set[bytes] = set()  # of all splits so far
    told = []
    for name in ("train", "gate", *JUDGED):
        split = getattr(splits, name)
        if not isinstance(split, TensorBatches):
            continue
        digests = [_digest(image) for image in split.images]
        copies = sum(digest in seen for digest in digests) if name in JUDGED else 0
        if copies == len(digests):
            raise InvalidInput(
                f"all {copies} images of split {name!r} are copies of images in {_before(name)}; results on them would "
                "be too good. Split the data into disjoint parts"
            )
        if copies:
            told.append(
                f"{copies} of the {len(digests)} images in split {name!r} are copies of images in {_before(name)}: "
                "results on them are too good"
            )
        seen.update(digests)
    return told


def _before(name: str) -> str:
    """Splits that are not to hold images of that one."""
    return "train" if name == JUDGED[0] else f"train or {JUDGED[0]}"


def _digest(image: Tensor) -> bytes:
    pixels = np.ascontiguousarray(image.detach().cpu().numpy())
    return hashlib.blake2b(pixels.data, digest_size=16).digest()
