"""torchvision's data sets: the split each has, memory where it can be, and refusals with a way out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from search_spaces import InvalidInput
from subnet_search.data import Splits, TensorBatches, describe, load_splits
from subnet_search.settings import DataSettings
from tests.data.makers import images

FAKE = {"size": 60, "image_size": (3, 10, 10), "num_classes": 3}


class Small:
    """As CIFAR10: everything in memory, a set for training and one for test."""

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        if not download and not Path(root).is_dir():
            raise RuntimeError(
                "Dataset not found or corrupted. You can use download=True to download it\nor not"
            )
        self.data = images(40 if train else 12, 8, 8, 3, seed=int(train))
        self.targets = [row % 2 for row in range(len(self.data))]
        self.classes = ["cat", "dog"]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.data[row]), self.targets[row]


class Split(Small):
    """As ImageNet: pictures one by one, "train" and "val" but no test."""

    def __init__(self, root: str, split: str = "train") -> None:
        if split not in ("train", "val"):
            raise ValueError(f"Unknown value {split!r} for argument split")
        super().__init__(root, split == "train")
        self.pictures, self._labels = self.data, self.targets
        del self.data, self.targets

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, row: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pictures[row]), self._labels[row]


class Boxes(Small):
    """Its items are no classes."""

    def __init__(self, root: str, **more: Any) -> None:
        super().__init__(root, **more)
        del self.targets

    def __getitem__(self, row: int) -> Any:
        return Image.fromarray(self.data[row]), {"boxes": []}


@pytest.fixture(autouse=True)
def offered(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Small, Split, Boxes):
        monkeypatch.setattr(datasets, kind.__name__, kind, raising=False)
    monkeypatch.setattr(datasets, "__all__", (*datasets.__all__, "Small", "Split", "Boxes"))


def load(name: str, **settings: Any) -> Splits:
    return load_splits(DataSettings(source=f"torchvision:{name}", **settings))


def test_a_set_in_memory_is_read_from_there_and_keeps_its_test_set(tmp_path: Path) -> None:
    splits = load("Small", options={"root": str(tmp_path)}, gate_share=0.0)
    assert describe(splits) == {"train": 32, "search_val": 8, "test": 12, "gate": None, "calibration": 32}
    assert isinstance(splits.test, TensorBatches)
    assert torch.equal(
        splits.test.images, torch.from_numpy(Small(str(tmp_path), False).data).permute(0, 3, 1, 2)
    )
    assert splits.classes == ("cat", "dog")


def test_pictures_one_by_one_are_the_same_as_from_memory(tmp_path: Path) -> None:
    options = {"root": str(tmp_path)}
    slow, quick = load("Split", options=options), load("Small", options=options)
    for split in ("test", "calibration"):
        for (a, b), (c, d) in zip(getattr(slow, split), getattr(quick, split), strict=True):
            assert torch.equal(a, c)
            assert torch.equal(b, d)


def test_a_set_without_parts_is_cut_by_shares() -> None:
    with_root = {"root": "data", **FAKE}  # as every recipe has it
    splits = load("FakeData", options=with_root, size=8)
    assert sum(count or 0 for name, count in describe(splits).items() if name != "calibration") == 60
    assert next(iter(splits.train))[0].shape[1:] == (3, 8, 8)
    theirs = np.array([label for _, label in datasets.FakeData(**FAKE)])
    found = torch.cat(
        [labels for part in (splits.train, splits.test, splits.search_val) for _, labels in part]
    )
    gate = [] if splits.gate is None else [labels for _, labels in splits.gate]
    assert (torch.cat([found, *gate]).bincount().numpy() == np.bincount(theirs)).all()


def test_a_set_that_is_not_there_names_the_way_to_it(tmp_path: Path) -> None:
    missing = {"root": str(tmp_path / "none")}
    with pytest.raises(InvalidInput, match=r"Dataset not found .*\[data\] download = true") as refusal:
        load("Small", options=missing)
    assert "\n" not in str(refusal.value)
    assert describe(load("Small", options=missing, download=True))["test"] == 12
    with pytest.raises(InvalidInput, match=r"CIFAR10 with .*none.* cannot be had: .*download = true"):
        load("CIFAR10", options=missing)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("CIFAR11", {}, "no data set 'CIFAR11'; did you mean 'CIFAR10'"),
        ("folder", {}, "no data set 'folder'"),
        ("Small", {"rooot": "x"}, "unexpected keyword argument 'rooot'; check the options"),
        ("CocoDetection", {}, "missing 1 required positional argument: 'annFile'; check the options"),
        ("Boxes", {"root": "."}, "one class number for each|must be integers from 0 on"),
        ("Split", {"root": ".", "split": "tset"}, "Unknown value 'tset'"),
        ("Small", {"root": ".", "download": True}, "download is a key of \\[data\\] itself"),
        ("FakeData", {**FAKE, "num_classes": 1}, "has one class only"),
    ],
)
def test_sets_that_cannot_be_used_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        load(name, options=options)


def test_a_broken_torchvision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(InvalidInput, match="Install torch and torchvision together"):
        load("CIFAR10")
