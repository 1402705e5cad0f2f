"""Shares are disjoint, seeded and stratified."""

from __future__ import annotations

import numpy as np
import pytest

from search_spaces import InvalidInput
from subnet_search.data import split_indices
from subnet_search.settings import DataSettings


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


def test_a_split_that_is_there_already_costs_nothing() -> None:
    labels = np.arange(1000) % 5
    parts = split_indices(labels, DataSettings(search_val_share=0.1, gate_share=0.0), given=("test",))
    assert {name: len(rows) for name, rows in parts.items()} == {
        "test": 0,
        "search_val": 100,
        "gate": 0,
        "train": 900,
    }
