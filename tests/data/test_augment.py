"""Flips and shifts of whole batches do to each image what they say."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from subnet_search.data.augment import random_crop, random_flip

IMAGES = torch.randint(1, 256, (64, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_flip_mirrors_an_image_or_leaves_it() -> None:
    torch.manual_seed(0)
    flips = random_flip(IMAGES)
    mirrored = [torch.equal(now, was.flip(-1)) for now, was in zip(flips, IMAGES, strict=True)]
    kept = [torch.equal(now, was) for now, was in zip(flips, IMAGES, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 16 < sum(mirrored) < 48


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_crop_is_one_of_all_windows_of_the_padded_image(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    images = IMAGES.to(dtype)
    places = set()
    for now, was in zip(random_crop(images), images, strict=True):
        padded = F.pad(was, (3, 3, 2, 2))  # an eighth of 24 and of 16
        found = [
            (top, left)
            for top in range(5)
            for left in range(7)
            if torch.equal(padded[:, top : top + 16, left : left + 24], now)
        ]
        assert len(found) == 1
        places.add(found[0])
    assert {top for top, _ in places} == set(range(5))
    assert {left for _, left in places} == set(range(7))
