"""What makes results mean less is told before anything is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from search_spaces import InvalidInput
from subnet_search.data import Splits, doubts, load_splits, splits_from_arrays
from subnet_search.settings import DataSettings
from tests.data.makers import images, write_folders

LABELS = np.arange(30) % 3


def test_ordinary_splits_raise_no_doubt(tmp_path: Path) -> None:
    write_folders(tmp_path, {"ant": 9, "bee": 9})
    assert doubts(load_splits(DataSettings(source=f"imagefolder:{tmp_path}"))) == []
    assert doubts(load_splits(DataSettings())) == []
    assert doubts(splits_from_arrays({"x": images(30, 4, 4), "y": LABELS}, DataSettings())) == []


def test_a_class_that_a_split_lacks_is_named(tmp_path: Path) -> None:
    write_folders(tmp_path, {"ant": 9, "bee": 9, "rare": 2})
    told = doubts(load_splits(DataSettings(source=f"imagefolder:{tmp_path}")))
    assert told == [
        f"split {name!r} has no image of rare: its results say nothing about that"
        for name in ("search_val", "test")
    ]
    arrays = {"x": images(60, 4, 4), "y": np.append(np.arange(6), [0] * 54)}
    [said, _] = doubts(splits_from_arrays(arrays, DataSettings()))
    assert "no image of 1, 2, 3 and 2 more:" in said


def test_copies_between_splits_are_counted_and_nothing_but_copies_is_refused() -> None:
    x, other = images(30, 4, 4), images(30, 4, 4, seed=1)
    arrays = {"x_train": x, "y_train": LABELS, "x_val": other, "y_val": LABELS, "y_test": LABELS}
    some = np.concatenate([x[:2], images(28, 4, 4, seed=2)])
    assert doubts(splits_from_arrays({**arrays, "x_test": some}, DataSettings(gate_share=0.0))) == [
        "2 of the 30 images in split 'test' are copies of images in train or search_val: results on them are too good"
    ]
    with pytest.raises(
        InvalidInput, match="all 30 images of split 'test' are copies of images in train or search_val"
    ):
        doubts(splits_from_arrays({**arrays, "x_test": np.concatenate([x[:9], other[9:]])}, DataSettings()))


def test_what_cannot_be_looked_at_is_not_judged() -> None:
    parts = [DataLoader(TensorDataset(torch.zeros(3, 1, 2, 2) + n, torch.rand(3))) for n in range(3)]
    assert doubts(Splits(*parts)) == []
    read_anyhow = DataLoader(parts[0].dataset, batch_sampler=[[0], [1]])
    assert doubts(Splits(read_anyhow, *parts[1:])) == []
