"""What a [data] table can name as its source."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch

from search_spaces import InvalidInput
from subnet_search.data import Batch, Splits, TensorBatches, describe, digits, load_splits
from subnet_search.settings import DataSettings


def batches(count: int = 2) -> list[Batch]:
    return [(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64)) for _ in range(count)]


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


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cifar", r'must be "digits", "npz:PATH", .* got \'cifar\''),
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


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ("digits", {"size": 16}, "size has no effect on the data source 'digits'; leave it out"),
        ("own_data:make", {"mean": (0.5,)}, "mean has no effect on the data source 'own_data:make'"),
        ("npz:d.npz", {"options": {"root": "x"}}, "options has no effect on the data source 'npz:d.npz'"),
    ],
)
def test_settings_without_effect_are_refused(source: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        load_splits(DataSettings(source=source, **settings))


def test_classes_of_the_users_splits_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("own_data")
    module.__dict__["make"] = lambda: Splits(batches(), batches(), batches(), classes=("x",))
    monkeypatch.setitem(sys.modules, "own_data", module)
    assert load_splits(DataSettings(source="own_data:make")).classes == ("x",)
    assert load_splits(DataSettings(source="own_data:make", classes=("y",))).classes == ("y",)
