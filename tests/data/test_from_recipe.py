"""Own data by recipe alone: paths, a run, and refusals at the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from subnet_search.cli import run_command
from subnet_search.recipe import read_recipe
from tests.data.makers import images, write_folders, write_npz

RECIPE = """
[model]
name = "subnet_search.small_models:SmallResNet"
options = { blocks = [1, 1], width = 4, num_classes = 2 }
epochs = 1
[data]
source = "%s"
batch_size = 16
%s
[elastic]
step = 2
[rank]
images = 16
steps = 20
val_images = 64
[device]
name = "cpu"
"""


def write_recipe(folder: Path, source: str, more: str = "") -> str:
    path = folder / "own.toml"
    path.write_text(RECIPE % (source, more))
    return str(path)


def test_paths_start_at_the_recipe_and_know_home_and_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("PLACE", "/data")
    for given, found in {
        "npz:d.npz": f"npz:{tmp_path}/d.npz",
        "imagefolder:../x": f"imagefolder:{tmp_path.parent}/x",
        "npz:~/d.npz": "npz:/home/me/d.npz",
        "npz:$PLACE/d.npz": "npz:/data/d.npz",
        "own.module:data": "own.module:data",
        "digits": "digits",
    }.items():
        assert read_recipe(write_recipe(tmp_path, given)).data.source == found
    roots = {
        "": f"{tmp_path}/data",
        'options = { root = "sets" }': f"{tmp_path}/sets",
        'options = { root = "~/sets" }': "/home/me/sets",
    }
    for more, root in roots.items():
        recipe = read_recipe(write_recipe(tmp_path, "torchvision:CIFAR10", more))
        assert recipe.data.options == {"root": root}


def test_a_path_that_cannot_be_followed_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["run", write_recipe(tmp_path, "npz:a\\u0000b"), "--out", str(tmp_path)]) == 2
    assert "cannot be followed: embedded null byte" in capsys.readouterr().err


def test_the_road_as_far_as_the_ranking_on_folders_of_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folders(tmp_path / "pictures" / "train", {"ant": 40, "bee": 40}, (12, 16, 3))
    write_folders(tmp_path / "pictures" / "test", {"ant": 8, "bee": 8}, (16, 12), seed=1)
    recipe = write_recipe(tmp_path, "imagefolder:pictures", 'size = 12\naugment = "crop+flip"')
    assert run_command(["rank", recipe, "--out", str(tmp_path)]) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "own" / "splits.json").read_text())
    assert found["classes"] == ["ant", "bee"]
    assert found["images"] == {"train": 60, "search_val": 16, "test": 16, "gate": 4, "calibration": 60}
    assert (tmp_path / "own" / "ranking.json").is_file()


@pytest.mark.parametrize(
    ("arrays", "more", "message"),
    [
        ({}, "", "must hold x_train and y_train"),
        ({"x": images(20, 8, 8), "y": np.arange(20) % 2}, "", "set channels = 3 in [data]"),
        ({"x": images(20, 8, 8, 3), "y": np.arange(20) % 5}, "", "go up to 4, so the network needs 5"),
        ({"x": images(20, 8, 8, 3), "y": np.zeros(20, int)}, "", "has one class only"),
        ({"x": np.array([{}]), "y": np.zeros(1)}, "", "cannot be read"),
        ({"x": images(20, 8, 8, 3), "y": np.arange(20) % 2}, "mean = [1.0, 2.0]", "mean must have one"),
        ({"x": images(20, 8, 8, 3), "y": np.arange(20) % 2}, "std = [0.0]", "greater than 0"),
        ({"x": images(20, 8, 8, 3), "y": np.arange(20) % 2}, 'preprocess = "weights"', "published weights"),
        ({"x": images(20, 8, 8, 3), "y": np.arange(20) % 2}, "options = { a = 1 }", "options has no effect"),
        ({"x": images(20, 8, 8, 3), "y": np.arange(20) % 2}, 'classes = ["a"]', "got 1 names"),
    ],
)
def test_data_that_cannot_be_used_are_refused_before_anything_is_computed(
    arrays: dict[str, np.ndarray],
    more: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_npz(tmp_path / "d.npz", **arrays)
    assert run_command(["run", write_recipe(tmp_path, "npz:d.npz", more), "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert not (tmp_path / "own" / "coverage.json").exists()


def test_an_unreadable_image_deep_in_a_folder_is_named_before_anything_is_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folders(tmp_path / "pictures" / "ant", {"deep": 20})
    write_folders(tmp_path / "pictures" / "bee" / "very", {"deep": 20})
    (tmp_path / "pictures" / "bee" / "very" / "deep" / "7.png").write_bytes(b"no image")
    assert run_command(["run", write_recipe(tmp_path, "imagefolder:pictures"), "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "bee/very/deep/7.png" in told
    assert "Traceback" not in told
