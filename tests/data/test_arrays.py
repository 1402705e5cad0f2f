"""npz files: every usual layout is read, everything else is refused with the file's name."""

from __future__ import annotations

import os
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from search_spaces import InvalidInput
from subnet_search.data import TensorBatches, describe, load_splits, splits_from_arrays
from subnet_search.data.arrays import as_images, read_npz
from subnet_search.settings import DataSettings
from tests.data.makers import images, write_npz

DATA = Path(os.environ.get("SUBNET_SEARCH_DATA", Path(__file__).parents[3] / "shared" / "data"))
LABELS = np.arange(20) % 2


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("layout", ["hwc", "chw"])
def test_every_layout_is_read_to_the_same_images(layout: str, dtype: type) -> None:
    pixels = images(6, 8, 9, 3)
    moved = (pixels if layout == "hwc" else pixels.transpose(0, 3, 1, 2)).astype(dtype)
    read = as_images(moved, "x", scaled=True)
    assert read.shape == (6, 3, 8, 9)
    assert read.dtype == (torch.float32 if np.issubdtype(dtype, np.floating) else torch.uint8)
    assert read[4, 1, 7, 2] == pixels[4, 7, 2, 1]


def test_grey_images_without_a_channel_axis_get_one() -> None:
    pixels = images(6, 8, 9)
    assert torch.equal(as_images(pixels, "x")[:, 0], torch.from_numpy(pixels))


def test_a_files_own_splits_are_taken_as_they_are(tmp_path: Path) -> None:
    parts = {"train": 40, "val": 10, "test": 6}
    arrays = {f"x_{part}": images(count, 4, 4) for part, count in parts.items()}
    arrays |= {f"y_{part}": np.arange(count) % 2 for part, count in parts.items()}
    source = write_npz(tmp_path / "d.npz", **arrays)
    splits = load_splits(DataSettings(source=source, gate_share=0.1))
    assert describe(splits) == {"train": 36, "search_val": 10, "test": 6, "gate": 4, "calibration": 36}
    for split, part in ((splits.search_val, "val"), (splits.test, "test")):
        assert isinstance(split, TensorBatches)
        assert torch.equal(split.images[:, 0], torch.from_numpy(arrays[f"x_{part}"]))


def test_arrays_without_a_test_set_are_cut_by_shares(tmp_path: Path) -> None:
    source = write_npz(tmp_path / "d.npz", x=images(20, 4, 4), y=LABELS[:, None], comment="any")
    sizes = describe(load_splits(DataSettings(source=source, test_share=0.3, search_val_share=0.2)))
    assert (sizes["test"], sizes["search_val"]) == (6, 4)


def test_floats_are_taken_as_they_are_unless_mean_and_std_are_given(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).normal(size=(20, 4, 4))
    source = write_npz(tmp_path / "d.npz", x=pixels, y=LABELS)
    plain = load_splits(DataSettings(source=source)).test
    assert isinstance(plain, TensorBatches)
    assert torch.equal(next(iter(plain))[0], plain.images)
    scaled = load_splits(DataSettings(source=source, mean=(2.0,), std=(4.0,))).test
    torch.testing.assert_close(next(iter(scaled))[0], (plain.images - 2) / 4)


X, Y = images(20, 4, 4), LABELS


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "must hold x_train and y_train .* it holds nothing"),
        ({"X_train": X, "labels": Y}, "it holds X_train, labels"),
        ({"y": Y}, "must hold x_train .* it holds y"),
        ({"x": X}, "holds x but no labels y; add them"),
        ({"x": X, "y": Y, "x_train": X, "y_train": Y}, "holds both x and x_train; leave one of them out"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "no labels y_test"),
        ({"x": X[0], "y": Y}, r"got shape \[4, 4\]"),
        ({"x": X[:, :0], "y": Y}, r"got shape \[20, 1, 0, 4\]"),
        ({"x": images(20, 8, 8, 5), "y": Y}, r"1 to 4 channels, got \[20, 8, 8, 5\]"),
        ({"x": images(20, 3, 8, 3), "y": Y}, r"1 to 4 channels, got \[20, 3, 8, 3\]"),
        ({"x": X[:0], "y": Y[:0]}, "x of .* holds no image"),
        ({"x": X.astype(np.int16) - 1, "y": Y}, "or float, got int16 from -1 to 254"),
        ({"x": X > 9, "y": Y}, "or float, got bool"),
        ({"x": X.astype("U3"), "y": Y}, "or float, got <U3"),
        ({"x": X.astype(complex), "y": Y}, "or float, got complex128"),
        ({"x": np.where(X > 9, np.nan, 0.5), "y": Y}, "holds NaN or infinity"),
        ({"x": np.full(X.shape, np.inf), "y": Y}, "holds NaN or infinity"),
        ({"x": X.astype(float), "y": Y}, "float with values up to 25[0-9]; divide by 255"),
        ({"x": X, "y": Y[:19]}, r"one class number for each of 20 images, got shape \[19\]"),
        ({"x": X, "y": np.eye(20)}, r"for each of 20 images, got shape \[20, 20\]"),
        ({"x": X, "y": Y.astype(float)}, "must be integers from 0 on, got float64"),
        ({"x": X, "y": Y - 1}, "y of .* must be numbers from 0 on, got -1"),
        ({"x": X, "y": Y + 1}, "no image has label 0"),
        ({"x": X, "y": 2 * Y}, "2 classes go up to 2 and no image has label 1"),
        ({"x": X, "y": 0 * Y}, "has one class only"),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y + 1}, "test labels of .* go up to 2"),
        ({"x": np.array([object()]), "y": Y}, "cannot be read: .*allow_pickle"),
        ({"x": X[:3], "y": Y[:3]}, "3 images of .* leave none for 'search_val'; choose other shares"),
    ],
)
def test_arrays_that_are_no_labelled_images_are_refused(
    arrays: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = write_npz(tmp_path / "d.npz", **arrays)
    with pytest.raises(InvalidInput, match=message) as refusal:
        load_splits(DataSettings(source=source))
    assert "d.npz" in str(refusal.value)


def test_test_images_unlike_those_of_training_are_refused_unless_converted(tmp_path: Path) -> None:
    def load(x_test: np.ndarray, **settings: Any) -> None:
        source = write_npz(tmp_path / "d.npz", x_train=images(20, 8, 8), y_train=Y, x_test=x_test, y_test=Y)
        splits = load_splits(DataSettings(source=source, **settings))
        assert next(iter(splits.test))[0].shape[1:] == next(iter(splits.train))[0].shape[1:]

    for other in (images(20, 9, 8), images(20, 8, 8, 3)):
        with pytest.raises(InvalidInput, match=r"images in x_test of .*d\.npz must be as large"):
            load(other)
        load(other, size=8, channels=3)
    with pytest.raises(InvalidInput, match=r"of the type of x_train, got torch\.float32 and torch\.uint8"):
        load(images(20, 8, 8) / 255)


def torn(whole: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "text": b"<html>not found</html>",
        "pickle": b"\x80\x04N.",
        "cut": whole[: len(whole) // 2],
        "flipped": whole[:200] + bytes([whole[200] ^ 255]) + whole[201:],
    }


@pytest.mark.parametrize("kind", list(torn(bytes(201))))
def test_a_damaged_file_is_refused_and_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    write_npz(path, x=X, y=Y)
    path.write_bytes(torn(path.read_bytes())[kind])
    with pytest.raises(InvalidInput, match=r"the data file .*d\.npz cannot be read"):
        read_npz(path)


def test_what_is_no_archive_of_arrays_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", X)
    with zipfile.ZipFile(tmp_path / "words.npz", "w") as archive:
        archive.writestr("x_train", "words")
    (tmp_path / "folder.npz").mkdir()
    for name, message in {
        "one.npy": "cannot be read: it is one array",
        "words.npz": "cannot be read: x_train is not an array",
        "folder.npz": "cannot be read",
        "none.npz": "there is no data file",
    }.items():
        with pytest.raises(InvalidInput, match=message):
            read_npz(tmp_path / name)


@pytest.mark.skipif(not (DATA / "fashion-mnist").is_dir(), reason="fashion-mnist is not here")
def test_an_epoch_of_fashion_mnist_costs_seconds() -> None:
    settings = DataSettings(
        source=f"npz:{DATA}/fashion-mnist/fashion_mnist.npz", batch_size=128, augment="crop+flip"
    )
    start_s = time.process_time()
    splits = load_splits(settings)
    assert describe(splits)["test"] == 10_000
    assert sum(len(labels) for _, labels in splits.train) == 45_600
    assert time.process_time() - start_s < 10


def test_arrays_of_ones_own_become_splits_without_a_file() -> None:
    splits = splits_from_arrays({"x": X, "y": Y}, DataSettings(batch_size=4, classes=("a", "b")))
    assert describe(splits)["test"] == 4
    assert splits.classes == ("a", "b")
    with pytest.raises(InvalidInput, match=r"the arrays must hold x_train .* got z"):
        splits_from_arrays({"z": X}, DataSettings())
