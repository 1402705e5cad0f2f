"""Folders of images: read as torchvision's ImageFolder reads them, and what is wrong is named."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional as tv

from search_spaces import InvalidInput
from subnet_search.data import Splits, check_files, describe, load_splits
from subnet_search.data.folders import read_folders
from subnet_search.data.preprocess import Preprocess
from subnet_search.settings import DataSettings
from tests.data.makers import write_folders

CLASSES = {"ant": 10, "bee": 20}
PLAIN = {"mean": (0.0,), "std": (1.0,)}


def load(root: Path, **settings: object) -> Splits:
    return load_splits(DataSettings(source=f"imagefolder:{root}", **settings))  # type: ignore[arg-type]


def test_images_and_classes_are_those_of_torchvisions_image_folder(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", CLASSES)
    write_folders(tmp_path / "test" / "ant", {"deep": 3}, seed=1)
    write_folders(tmp_path / "test", {"bee": 4}, seed=2)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    splits, theirs = load(tmp_path, **PLAIN), ImageFolder(str(tmp_path / "test"))
    assert splits.classes == tuple(theirs.classes)
    (images, labels), *_ = splits.test
    assert torch.equal(images, torch.stack([tv.pil_to_tensor(picture) / 255 for picture, _ in theirs]))
    assert labels.tolist() == theirs.targets


def test_splits_are_cut_from_the_class_folders_unless_they_are_there(tmp_path: Path) -> None:
    write_folders(tmp_path, CLASSES)
    sizes = describe(load(tmp_path, gate_share=0.0))
    assert sizes == {"train": 18, "search_val": 6, "test": 6, "gate": None, "calibration": 18}
    write_folders(tmp_path / "own" / "train", CLASSES)
    write_folders(tmp_path / "own" / "valid", {"bee": 7})
    sizes = describe(load(tmp_path / "own", gate_share=0.0))
    assert sizes == {"train": 24, "search_val": 7, "test": 6, "gate": None, "calibration": 24}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_folders(tmp_path, {"car": 5, "train": 5})
    assert load(tmp_path).classes == ("car", "train")


def test_images_of_several_sizes_are_resized_and_cut_to_the_size_asked_for(tmp_path: Path) -> None:
    write_folders(tmp_path / "a", {"x": 5}, (10, 12, 3))
    write_folders(tmp_path / "b", {"x": 5}, (30, 20))  # grey
    images, _ = next(iter(load(tmp_path, size=8, batch_size=99).train))
    assert images.shape == (6, 3, 8, 8)
    assert next(iter(load(tmp_path, size=8, channels=1).test))[0].shape[1] == 1
    splits = load(tmp_path, batch_size=99)
    with pytest.raises(InvalidInput, match=r"one size, got \[3, 10, 12\] and \[3, 30, 20\]; set size"):
        next(iter(splits.train))
    with pytest.raises(InvalidInput, match="one size, got 12x10 and 20x30 px; set size"):
        check_files(splits)


def test_a_test_folder_of_another_size_is_found_before_training(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", CLASSES, (10, 12))
    write_folders(tmp_path / "test", CLASSES, (12, 12))
    with pytest.raises(InvalidInput, match="got 12x10 and 12x12 px"):
        check_files(load(tmp_path))
    check_files(load(tmp_path, size=8))


def test_processes_read_the_same_images(tmp_path: Path) -> None:
    write_folders(tmp_path, CLASSES)
    alone, helped = (load(tmp_path, workers=workers, batch_size=4) for workers in (0, 1))
    for split in ("test", "calibration"):
        for (a, b), (c, d) in zip(getattr(alone, split), getattr(helped, split), strict=True):
            assert torch.equal(a, c)
            assert torch.equal(b, d)


def test_an_epoch_of_training_leaves_out_a_last_batch_of_one(tmp_path: Path) -> None:
    write_folders(tmp_path, CLASSES)
    splits = load(tmp_path, batch_size=17, gate_share=0.0)
    assert [len(labels) for _, labels in splits.train] == [17]
    assert [len(labels) for _, labels in splits.calibration or ()] == [17, 1]


def test_processes_augment_by_torchs_generator(tmp_path: Path) -> None:
    write_folders(tmp_path, CLASSES)
    train = load(tmp_path, workers=1, augment="crop+flip").train
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(torch.cat([images for images, _ in train]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_decoded_is_named(workers: int, tmp_path: Path) -> None:
    write_folders(tmp_path / "a", {"x": 9}, (60, 60, 3))
    write_folders(tmp_path / "b" / "y", {"z": 9}, (60, 60, 3))
    torn = tmp_path / "b" / "y" / "z" / "4.png"
    torn.write_bytes(torn.read_bytes()[:2000])
    splits = load(tmp_path, workers=workers)
    with pytest.raises(InvalidInput, match=r"y/z/4\.png cannot be read: ") as refusal:
        list(itertools.chain(splits.train, splits.search_val, splits.test))
    assert "\n" not in str(refusal.value)


def test_files_that_are_no_images_are_found_before_anything_is_trained(tmp_path: Path) -> None:
    write_folders(tmp_path, CLASSES)
    (tmp_path / "bee" / "3.png").write_bytes(b"")
    (tmp_path / "bee" / "5.png").write_bytes(b"<html>")
    (tmp_path / "ant" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(
        InvalidInput, match=r"3 of 31 images cannot be read: .*gone\.jpg \(FileNotFoundError\)"
    ):
        check_files(load(tmp_path))
    for number in range(10):
        (tmp_path / "bee" / f"{number}.png").write_bytes(b"")
    with pytest.raises(InvalidInput, match=r"11 of 31 images .* and 8 more; mend or delete them"):
        check_files(load(tmp_path))


def test_the_order_of_files_does_not_depend_on_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folders(tmp_path, CLASSES)
    before = read_folders(tmp_path, Preprocess())[0]["train"].pictures.read
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda *a, **k: ((p, d, n[::-1]) for p, d, n in walk(*a, **k)))
    assert read_folders(tmp_path, Preprocess())[0]["train"].pictures.read == before


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp"])
def test_torn_images_are_found_before_anything_is_trained(ending: str, tmp_path: Path) -> None:
    write_folders(tmp_path, CLASSES)
    whole = tmp_path / "ant" / f"large.{ending}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(whole)
    check_files(load(tmp_path, size=8))
    with whole.open("ab") as file:
        file.write(bytes(100))  # some cameras do
    check_files(load(tmp_path, size=8))
    whole.write_bytes(whole.read_bytes()[:-1000])
    with pytest.raises(
        InvalidInput, match=rf"1 of 31 images cannot be read: .*large\.{ending} \(.*truncated"
    ):
        check_files(load(tmp_path, size=8))


@pytest.mark.parametrize(("dtype", "mode"), [("uint16", "I;16"), ("int32", "I"), ("float32", "F")])
def test_images_of_more_than_8_bits_are_refused_as_pillow_would_cut_them_off(
    dtype: str, mode: str, tmp_path: Path
) -> None:
    write_folders(tmp_path, CLASSES)
    Image.fromarray(np.full((10, 12), 300, dtype)).save(tmp_path / "ant" / "deep.tif")
    splits = load(tmp_path)
    with pytest.raises(InvalidInput, match=rf"deep\.tif \(pixels of more than 8 bits, mode {mode}\)"):
        check_files(splits)
    with pytest.raises(InvalidInput, match=r"deep\.tif cannot be read: .*; mend or delete it"):
        list(itertools.chain(splits.train, splits.search_val, splits.test, splits.gate or ()))


def test_links_in_a_circle_are_followed_once(tmp_path: Path) -> None:
    write_folders(tmp_path, CLASSES)
    for name in ("again", "too"):
        (tmp_path / "ant" / name).symlink_to(tmp_path / "ant")
    splits = load(tmp_path, gate_share=0.0)
    check_files(splits)
    assert describe(splits) == describe(load(tmp_path, gate_share=0.0))
    assert sum(describe(splits)[name] or 0 for name in ("train", "search_val", "test")) == 30


@pytest.mark.parametrize(
    ("link", "to"), [("train/ant/all", "train"), ("test", "train"), ("train/bee/2.jpg", "train/ant/2.png")]
)
def test_a_file_in_two_places_is_refused(link: str, to: str, tmp_path: Path) -> None:
    write_folders(tmp_path / "train", CLASSES)
    (tmp_path / link).symlink_to(tmp_path / to)
    with pytest.raises(InvalidInput, match=r"are one file: .* training and test; delete one of them"):
        check_files(load(tmp_path))


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ([], "must hold a folder for each class, got none"),
        (["test/ant/"], "has test but no folder train"),
        (["ant/", "bee/"], "ant holds no image"),
        (["train/ant/", "train/bee/", "test/cat/"], "cat is a class without training images"),
    ],
)
def test_folders_without_classes_or_images_are_refused(
    folders: list[str], message: str, tmp_path: Path
) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(InvalidInput, match=message):
        load(tmp_path)


def test_what_cannot_make_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"there is no folder .*none; check the path"):
        load(tmp_path / "none")
    write_folders(tmp_path / "one", {"ant": 3})
    with pytest.raises(InvalidInput, match="has one class only"):
        load(tmp_path / "one")
    write_folders(tmp_path / "two", {"ant": 1, "bee": 1})
    with pytest.raises(InvalidInput, match=r"2 images of .* leave none for 'search_val'"):
        load(tmp_path / "two")
    write_folders(tmp_path / "three" / "train", CLASSES)
    (tmp_path / "three" / "test" / "ant").mkdir(parents=True)
    with pytest.raises(InvalidInput, match="test holds no image"):
        load(tmp_path / "three")
