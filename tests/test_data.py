"""Splits are disjoint, seeded, stratified and re-iterable; what is not is refused."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset, SubsetRandomSampler, TensorDataset

from search_spaces import InvalidInput
from subnet_search.batches import first_images
from subnet_search.data import Batch, Splits, TensorBatches, describe, digits, load_splits, split_indices
from subnet_search.settings import DataSettings


def batches(count: int = 2) -> list[Batch]:
    return [(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(3))
def test_splits_cover_every_image_once_and_keep_the_classes_in_proportion(seed: int) -> None:
    labels = np.random.default_rng(0).integers(0, 5, size=1000)
    settings = DataSettings(seed=seed, test_share=0.3, search_val_share=0.1, gate_share=0.05)
    parts = split_indices(labels, settings)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(1000))
    for name, share in {"test": 0.3, "search_val": 0.1, "gate": 0.6 * 0.05}.items():
        for label in range(5):
            here, there = (labels[parts[name]] == label).sum(), (labels == label).sum()
            assert abs(here - share * there) <= 1


def test_splits_depend_on_the_seed_alone() -> None:
    labels = np.arange(200) % 4
    first, again, other = (split_indices(labels, DataSettings(seed=seed)) for seed in (0, 0, 1))
    assert all((first[name] == again[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)


def test_shares_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"0\.5 \+ 0\.6"):
        split_indices(np.zeros(9), DataSettings(test_share=0.5, search_val_share=0.6))


def test_digits_are_all_there_and_calibration_sees_the_training_images() -> None:
    splits = digits(DataSettings())
    sizes = describe(splits)
    assert sum(size or 0 for name, size in sizes.items() if name != "calibration") == 1797
    images, labels = next(iter(splits.train))
    assert images.shape == (64, 1, 8, 8)
    assert images.min() >= -1
    assert images.max() <= 1
    assert labels.dtype == torch.int64
    assert isinstance(splits.train, TensorBatches)
    assert isinstance(splits.calibration, TensorBatches)
    assert torch.equal(splits.train.images, splits.calibration.images)


def test_without_a_gate_share_there_is_no_gate() -> None:
    assert digits(DataSettings(gate_share=0.0)).gate is None


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


def test_empty_or_unequal_tensors_are_refused() -> None:
    with pytest.raises(InvalidInput, match="2 images, 3 labels"):
        TensorBatches(torch.zeros(2), torch.zeros(3), 1)
    with pytest.raises(InvalidInput, match="at least one image"):
        TensorBatches(torch.zeros(0), torch.zeros(0), 1)


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


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cifar", '"digits" or "package.module:factory", got \'cifar\''),
        ("no.such.module:f", "cannot be imported"),
        ("own_data:missing", "has no callable 'missing'"),
        ("own_data:number", "has no callable 'number'"),
        ("own_data:broken", "fails: OSError: no file"),
        ("own_data:wrong", "must return Splits, got list"),
    ],
)
def test_a_data_source_that_gives_no_splits_is_refused(
    source: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise OSError("no file")

    module = types.ModuleType("own_data")
    module.__dict__.update(number=3, broken=broken, wrong=lambda: [])
    monkeypatch.setitem(sys.modules, "own_data", module)
    with pytest.raises(InvalidInput, match=message):
        load_splits(DataSettings(source=source))


def test_a_factory_of_the_user_gets_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("own_data")
    module.__dict__["make"] = lambda count: Splits(batches(count), batches(), batches())
    monkeypatch.setitem(sys.modules, "own_data", module)
    splits = load_splits(DataSettings(source="own_data:make", options={"count": 5}))
    assert describe(splits) == {"train": 15, "search_val": 6, "test": 6, "gate": None, "calibration": 15}


def test_a_last_batch_of_one_image_joins_the_one_before() -> None:
    taken = first_images([(torch.zeros(3, 1), torch.zeros(3)), (torch.ones(3, 1), torch.ones(3))], 4)
    assert [images.flatten().tolist() for images, _ in taken] == [[0, 0, 0, 1]]
    assert [labels.tolist() for _, labels in taken] == [[0, 0, 0, 1]]
