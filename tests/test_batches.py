from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from search_spaces import InvalidInput
from subnet_search.batches import call_with, first_images, sample_images, to_device
from subnet_search.data import Batch, TensorBatches


def sorted_batches(count: int = 100, size: int = 8) -> list[Batch]:
    """Image i is the number i; the classes are in order."""
    images = torch.arange(count, dtype=torch.float32).reshape(-1, 1, 1, 1)
    labels = torch.arange(count) // (count // 4)
    return list(TensorBatches(images, labels, size))


def numbers(sample: list[Batch]) -> list[int]:
    return [int(x) for images, _ in sample for x in images.flatten()]


def test_a_sample_is_of_all_classes_in_the_order_of_the_split() -> None:
    sample = sample_images(sorted_batches(), 40)
    found = numbers(sample)
    assert len(found) == len(set(found)) == 40
    assert found == sorted(found)
    assert torch.cat([labels for _, labels in sample]).tolist() == [number // 25 for number in found]
    assert min(sum(number // 25 == label for number in found) for label in range(4)) >= 4
    assert [len(labels) for _, labels in sample] == [8] * 5


def test_a_sample_goes_by_its_seed_and_not_by_how_images_are_batched() -> None:
    first, second, other = (
        numbers(sample_images(sorted_batches(size=size), 30, seed)) for size, seed in ((8, 1), (7, 1), (8, 2))
    )
    assert first == second != other


def test_every_image_is_as_likely() -> None:
    hits = np.bincount(
        [n for seed in range(400) for n in numbers(sample_images(sorted_batches(24), 6, seed))]
    )
    assert hits.shape == (24,)
    assert hits.sum() == 2400
    assert ((hits > 60) & (hits < 145)).all()  # 100 each, within five standard deviations


def test_a_small_split_is_taken_whole() -> None:
    assert numbers(sample_images(sorted_batches(20), 100)) == list(range(20))


def test_sampling_leaves_global_chance_alone() -> None:
    shuffled = TensorBatches(torch.rand(9, 1, 2, 2), torch.zeros(9).long(), 4, shuffle=True)
    before = (random.getstate(), torch.get_rng_state())
    sample_images(shuffled, 3)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_what_is_no_batch_and_an_empty_split_are_refused() -> None:
    with pytest.raises(InvalidInput, match="the split is empty"):
        sample_images([], 3)
    with pytest.raises(InvalidInput, match="pair of tensors"):
        sample_images([torch.zeros(3)], 3)  # type: ignore[list-item]
    with pytest.raises(InvalidInput, match="one input and one target, got several tensors"):
        sample_images([((torch.zeros(3), torch.zeros(3)), torch.zeros(3))], 3)  # type: ignore[list-item]


def test_batches_of_several_tensors_are_cut_and_counted_as_one() -> None:
    def batch(start: int, count: int) -> Batch:
        rows = torch.arange(start, start + count)
        return {"a": rows, "b": (-rows, rows.float()[:, None])}, [rows]  # type: ignore[return-value]

    taken: list[Any] = first_images([batch(0, 4), batch(4, 4)], 5)
    assert [len(targets[0]) for _, targets in taken] == [5]  # none of one, which would have no variance
    assert taken[0][0]["b"][0].tolist() == [0, -1, -2, -3, -4]
    assert taken[0][0]["b"][1].shape == (5, 1)
    [moved_batch] = to_device([batch(0, 2)], torch.device("cpu"))
    assert moved_batch[0]["a"].tolist() == [0, 1]  # type: ignore[call-overload]


def test_lists_tuples_and_dicts_of_inputs_are_arguments() -> None:
    class Difference(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a - b

    a, b = torch.ones(2), torch.zeros(2)
    for inputs in ((a, b), [a, b], {"b": b, "a": a}):
        assert call_with(Difference(), inputs).tolist() == [1, 1]
    assert call_with(nn.Identity(), a) is a
