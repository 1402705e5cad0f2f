"""Splits from pools: what is augmented, in which order, and the names of the classes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from search_spaces import InvalidInput
from subnet_search.data import Splits, TensorBatches, describe, load_splits
from subnet_search.settings import DataSettings
from subnet_search.training.checkpoint import Place
from subnet_search.training.loop import draw
from tests.data.makers import write_folders, write_npz

PER_CLASS = 50


def sorted_splits(tmp_path: Path, **settings: object) -> Splits:
    """Each image is all of one value: its number; classes lie one after the other, as many files have them."""
    labels = np.repeat(np.arange(4), PER_CLASS)
    pixels = np.arange(200, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    source = write_npz(tmp_path / "d.npz", x=pixels, y=labels)
    return load_splits(DataSettings(source=source, mean=(0.0,), std=(1.0,), **settings))  # type: ignore[arg-type]


def numbers(split: object) -> list[int]:
    assert isinstance(split, TensorBatches)
    return [int(number) for batch, _ in split for number in (255 * batch[:, 0, 4, 4]).round()]


def test_every_image_is_in_one_split(tmp_path: Path) -> None:
    splits = sorted_splits(tmp_path)
    parts = [numbers(part) for part in (splits.train, splits.search_val, splits.test, splits.gate)]
    assert sorted(itertools.chain(*parts)) == list(range(200))
    assert sorted(numbers(splits.calibration)) == sorted(parts[0])


def test_calibration_begins_with_all_classes_even_where_the_source_is_sorted(tmp_path: Path) -> None:
    first = numbers(sorted_splits(tmp_path).calibration)[:20]
    assert {number // PER_CLASS for number in first} == {0, 1, 2, 3}
    assert first == numbers(sorted_splits(tmp_path).calibration)[:20]
    assert first != numbers(sorted_splits(tmp_path, seed=1).calibration)[:20]


def test_only_training_is_augmented(tmp_path: Path) -> None:
    splits = sorted_splits(tmp_path, augment="crop+flip")

    def has_edges(split: object) -> bool:
        assert isinstance(split, TensorBatches)
        return any((batch[:, :, :1, :1] != batch[:, :, 4:5, 4:5]).any() for batch, _ in split)

    torch.manual_seed(0)
    assert has_edges(splits.train)
    for split in (splits.calibration, splits.search_val, splits.gate, splits.test):
        assert not has_edges(split)


def test_training_batches_follow_torchs_generator(tmp_path: Path) -> None:
    splits, drawn = sorted_splits(tmp_path, augment="crop+flip"), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(torch.cat([batch for batch, _ in splits.train]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("source", ["memory", "files", "files by a process"])
def test_a_resumed_epoch_draws_the_batches_that_the_unbroken_one_would_have_drawn(
    source: str, tmp_path: Path
) -> None:
    if source == "memory":
        train = sorted_splits(tmp_path, augment="crop+flip", batch_size=32).train
    else:
        write_folders(tmp_path, {"ant": 40, "bee": 40})
        settings = DataSettings(
            source=f"imagefolder:{tmp_path}",
            augment="crop+flip",
            batch_size=16,
            workers=int(source != "files"),
        )
        train = load_splits(settings).train
    whole = list(draw(train, 5, Place(epoch=2)))
    rest = list(draw(train, 5, Place(epoch=2, step=2, batch=2)))
    assert len(rest) == len(whole) - 2 > 0
    for (images, labels), (wanted, numbers_wanted) in zip(rest, whole[2:], strict=True):
        assert torch.equal(images, wanted)
        assert torch.equal(labels, numbers_wanted)


def test_classes_may_be_named_by_the_recipe(tmp_path: Path) -> None:
    assert sorted_splits(tmp_path).classes is None
    assert sorted_splits(tmp_path, classes=("a", "b", "c", "d")).classes == ("a", "b", "c", "d")
    with pytest.raises(InvalidInput, match=r"each of the 4 classes of .*, got 2 names"):
        sorted_splits(tmp_path, classes=("a", "b"))


def test_without_a_gate_share_there_is_no_gate(tmp_path: Path) -> None:
    assert describe(sorted_splits(tmp_path, gate_share=0.0))["gate"] is None
