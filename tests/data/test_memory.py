"""Batches from memory: every image once, shuffled by torch's generator, prepared batch by batch."""

from __future__ import annotations

import pytest
import torch

from search_spaces import InvalidInput
from subnet_search.data import TensorBatches


def test_tensor_batches_hand_out_every_image_once_and_shuffle_by_torchs_generator() -> None:
    plain = TensorBatches(torch.arange(10), torch.arange(10), batch_size=4)
    assert [len(labels) for _, labels in plain] == [4, 4, 2]
    assert len(plain) == 3
    shuffled = TensorBatches(torch.arange(10), torch.arange(10), batch_size=4, shuffle=True)
    orders = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        orders.append(torch.cat([images for images, _ in shuffled]).tolist())
    assert sorted(orders[0]) == list(range(10))
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(("count", "drawn"), [(9, [4, 4]), (10, [4, 4, 2]), (1, [1]), (5, [4])])
def test_a_shuffled_epoch_leaves_out_a_last_batch_of_one(count: int, drawn: list[int]) -> None:
    images = torch.arange(count)
    shuffled = TensorBatches(images, images, batch_size=4, shuffle=True)
    assert [len(labels) for _, labels in shuffled] == drawn
    assert len(shuffled) == len(drawn)
    assert sum(len(labels) for _, labels in TensorBatches(images, images, batch_size=4)) == count
    assert [len(labels) for _, labels in TensorBatches(images, images, 1, shuffle=True)] == [1] * count


def test_empty_or_unequal_tensors_are_refused() -> None:
    with pytest.raises(InvalidInput, match="2 images, 3 labels"):
        TensorBatches(torch.zeros(2), torch.zeros(3), 1)
    with pytest.raises(InvalidInput, match="at least one image"):
        TensorBatches(torch.zeros(0), torch.zeros(0), 1)


def test_images_are_prepared_batch_by_batch_and_stay_raw_in_memory() -> None:
    raw = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1)
    seen = []

    def halves(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return images / 2

    prepared = TensorBatches(raw, torch.arange(5), batch_size=2, prepare=halves)
    assert torch.cat([images.flatten() for images, _ in prepared]).tolist() == [0, 0.5, 1, 1.5, 2]
    assert seen == [2, 2, 1]
    assert prepared.images.dtype == torch.uint8
