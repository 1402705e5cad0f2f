"""Splits are re-iterable and share nothing; what is not so is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import DataLoader, Subset, SubsetRandomSampler, TensorDataset

from search_spaces import InvalidInput
from subnet_search.batches import first_images
from subnet_search.data import Batch, Splits, TensorBatches


def batches(count: int = 2) -> list[Batch]:
    return [(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64)) for _ in range(count)]


def test_calibration_is_the_training_data_unless_given() -> None:
    train, other = batches(), batches()
    assert Splits(train, batches(), batches()).calibration is train
    assert Splits(train, batches(), batches(), calibration=other).calibration is other


def test_a_split_that_can_be_read_only_once_is_refused() -> None:
    def generator() -> Iterator[Batch]:
        yield from batches()

    with pytest.raises(InvalidInput, match="'train' can be read only once, got generator"):
        Splits(generator(), batches(), batches())
    with pytest.raises(InvalidInput, match="'test' must hold"):
        Splits(batches(), batches(), 3)  # type: ignore[arg-type]


def test_the_same_loader_twice_is_refused() -> None:
    val = batches()
    with pytest.raises(InvalidInput, match="'search_val' and 'test' share images"):
        Splits(batches(), val, val)


def test_loaders_of_overlapping_subsets_are_refused_and_disjoint_ones_are_not() -> None:
    data = TensorDataset(torch.zeros(9, 1), torch.zeros(9))

    def loader(*indices: int) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(Subset(data, indices), batch_size=2)

    Splits(loader(0, 1, 2), loader(3, 4), loader(5, 6))
    with pytest.raises(InvalidInput, match="'train' and 'test' share images"):
        Splits(loader(0, 1, 2), loader(3, 4), loader(2, 6))
    with pytest.raises(InvalidInput, match="'train' and 'search_val' share images"):
        Splits(DataLoader(data), DataLoader(data), loader(1))
    with pytest.raises(InvalidInput, match="'train' and 'search_val' share images"):
        Splits(DataLoader(data), loader(3), loader(1))
    nested = Subset(Subset(data, [4, 5, 6]), [2])
    with pytest.raises(InvalidInput, match="'train' and 'test' share images"):
        Splits(loader(0, 6), loader(1), DataLoader(nested))
    Splits(loader(0, 4, 5), loader(1), DataLoader(nested))


def test_samplers_over_one_data_set_are_told_apart_by_their_indices() -> None:
    data = TensorDataset(torch.zeros(9, 1), torch.zeros(9))

    def loader(*indices: int) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(data, batch_size=2, sampler=SubsetRandomSampler(indices))

    Splits(loader(0, 1), loader(2), loader(3))
    Splits(*(DataLoader(data, batch_sampler=[[row]]) for row in range(3)))
    with pytest.raises(InvalidInput, match="'train' and 'test' share images"):
        Splits(loader(0, 1), loader(2), loader(1))


def test_splits_that_hold_the_same_tensors_are_refused() -> None:
    images, labels = torch.zeros(4, 1), torch.zeros(4)
    with pytest.raises(InvalidInput, match="'train' and 'search_val' share images"):
        Splits([(images, labels)], [(images, labels)], batches())
    with pytest.raises(InvalidInput, match="'train' and 'test' share images"):
        Splits(TensorBatches(images, labels, 2), batches(), TensorBatches(images, labels, 4))


@pytest.mark.parametrize("split", [None, torch.zeros(3), "digits", 7])
def test_what_holds_no_batches_is_no_split(split: object) -> None:
    with pytest.raises(InvalidInput, match=r"must hold \(input, target\) batches"):
        Splits(split, batches(), batches())  # type: ignore[arg-type]


def test_a_last_batch_of_one_image_joins_the_one_before() -> None:
    taken = first_images([(torch.zeros(3, 1), torch.zeros(3)), (torch.ones(3, 1), torch.ones(3))], 4)
    assert [images.flatten().tolist() for images, _ in taken] == [[0, 0, 0, 1]]
    assert [labels.tolist() for _, labels in taken] == [[0, 0, 0, 1]]
