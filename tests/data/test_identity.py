"""Data that change under a run are noticed, by their members and by their pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

from subnet_search.data import Splits, changed, checksums, load_splits, splits_from_arrays
from subnet_search.settings import DataSettings
from tests.data.makers import images, write_folders

LABELS = np.arange(60) % 3


def arrays(count: int = 60, seed: int = 0, labels: np.ndarray = LABELS) -> Splits:
    return splits_from_arrays({"x": images(count, 4, 4, seed=seed), "y": labels[:count]}, DataSettings())


def differ(before: Splits, now: Splits) -> tuple[list[str], list[str]]:
    return changed(checksums(before), checksums(now))


def test_the_same_arrays_are_the_same_and_others_are_told_apart() -> None:
    everything = ["gate", "search_val", "test", "train"]
    assert differ(arrays(), arrays()) == ([], [])
    assert differ(arrays(), arrays(seed=1)) == ([], everything)
    assert differ(arrays(), arrays(count=30))[0] == everything
    smaller = splits_from_arrays({"x": images(60, 4, 3), "y": LABELS}, DataSettings())
    assert differ(arrays(), smaller)[0] == everything
    assert differ(arrays(), arrays(labels=LABELS[::-1].copy()))[0] != []


def test_files_are_told_apart_by_their_names(tmp_path: Path) -> None:
    write_folders(tmp_path, {"ant": 9, "bee": 9})
    settings = DataSettings(source=f"imagefolder:{tmp_path}", gate_share=0.0)
    before = load_splits(settings)
    assert differ(before, load_splits(settings)) == ([], [])
    (tmp_path / "ant" / "3.png").rename(tmp_path / "ant" / "new.png")
    assert "train" in differ(before, load_splits(settings))[0]


def test_loaders_that_split_by_chance_are_noticed() -> None:
    data = TensorDataset(torch.rand(9, 1, 4, 4), torch.arange(9) % 3)

    def split(order: list[int]) -> Splits:
        return Splits(*(DataLoader(Subset(data, order[n : n + 3])) for n in (0, 3, 6)))

    assert differ(split(list(range(9))), split(list(range(9)))) == ([], [])
    assert differ(split(list(range(9))), split([8, *range(8)]))[0] == ["search_val", "test", "train"]


def test_what_cannot_be_looked_at_counts_as_the_same() -> None:
    own = [[(torch.zeros(2, 1, 4, 4) + n, torch.tensor([0, 1]))] for n in range(3)]
    assert differ(Splits(*own), Splits(*own)) == ([], [])
    assert differ(Splits(*own), Splits(own[0], own[1], [(torch.ones(2, 1, 4, 4), own[2][0][1])])) == (
        [],
        ["test"],
    )
