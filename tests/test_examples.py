"""The examples run, and what the guides show is accepted and does what they say."""

from __future__ import annotations

import re
import runpy
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset

from subnet_search.cli import run_command
from subnet_search.data import Splits, check_network, describe, load_splits
from subnet_search.elastic import extract, make_elastic
from subnet_search.models import load_model
from subnet_search.recipe import Recipe, parse_recipe, read_recipe
from subnet_search.small_models import resnet20
from tests.data.makers import images, write_folders

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
GUIDES = ROOT / "docs" / "guides"


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_every_script_runs(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--smoke"])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert "search" in capsys.readouterr().out


@pytest.fixture
def made_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small data of the form that the recipes read."""
    monkeypatch.setenv("SUBNET_SEARCH_DATA", str(tmp_path))
    monkeypatch.chdir(ROOT)
    for folder in ("fashion-mnist", "cifar10-jpeg", "cifar10-resnet-weights"):
        (tmp_path / folder).mkdir()
    drawn = images(450, 28, 28)
    arrays = {"x_train": drawn[:400], "x_test": drawn[400:]}
    arrays |= {name.replace("x", "y"): np.arange(len(x), dtype=np.uint8) % 10 for name, x in arrays.items()}
    np.savez(tmp_path / "fashion-mnist" / "fashion_mnist.npz", **arrays)
    runpy.run_path(str(EXAMPLES / "cifar10_jpeg.py"))["write_noise"](tmp_path / "cifar10-jpeg")
    state = {name: t.numpy() for name, t in resnet20().state_dict().items() if "sources" not in name}
    np.savez(tmp_path / "cifar10-resnet-weights" / "resnet20.npz", **state)
    return tmp_path


def load(recipe: Recipe) -> Splits:
    model = load_model(recipe.model.name, recipe.model.weights, dict(recipe.model.options))
    splits = load_splits(recipe.data, recipe.model)
    check_network(model, next(iter(splits.test))[0][:1], splits)
    return splits


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.toml")))
def test_every_recipes_network_fits_its_data(name: str, made_data: Path) -> None:
    splits = load(read_recipe(EXAMPLES / name))
    assert len(splits.classes or ()) == 10
    assert describe(splits)["test"] in (50, 100)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.toml")))
def test_every_recipe_passes_its_dry_run(name: str, made_data: Path) -> None:
    assert run_command(["run", str(EXAMPLES / name), "--dry-run", "--out", str(made_data)]) == 0


def blocks(guide: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (GUIDES / guide).read_text("utf-8"), flags=re.DOTALL)


def run_block(code: str, **names: Any) -> dict[str, Any]:
    exec(compile(code, "a guide", "exec"), names)
    return names


def as_module(name: str, monkeypatch: pytest.MonkeyPatch, *codes: str) -> types.ModuleType:
    module = types.ModuleType(name)
    for code in codes:
        exec(compile(code, name, "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def recipe_of(block: str, folder: Path, model: str = "subnet_search.small_models:resnet20") -> Recipe:
    text = block if "[model]" in block else f'[model]\nname = "{model}"\noptions = {{ width = 4 }}\n{block}'
    (folder / "recipe.toml").write_text(text)
    return read_recipe(folder / "recipe.toml")


def test_the_data_guide_loads_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, folders, published, weights, *_ = blocks("own-data.md", "toml")
    monkeypatch.chdir(tmp_path)
    x, y = images(60, 12, 12, 3), np.arange(60) % 3
    saving = blocks("own-data.md", "python")[0]
    run_block(saving, np=np, x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    splits = load(recipe_of(file, tmp_path))
    assert (describe(splits)["test"], splits.classes) == (20, ("daisy", "rose", "tulip"))

    write_folders(tmp_path / "flowers" / "train", {"daisy": 12, "rose": 12})
    write_folders(tmp_path / "flowers" / "test", {"rose": 3})
    recipe = recipe_of(folders, tmp_path)
    assert recipe.data.workers == 2
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"workers": 0})})
    assert next(iter(load(recipe).test))[0].shape == (3, 3, 96, 96)

    recipe = recipe_of(published, tmp_path)
    assert (recipe.data.download, recipe.data.options) == (True, {"root": str(tmp_path / "data")})

    write_folders(tmp_path / "imagenet", {"owl": 9, "wren": 9}, (20, 30, 3))
    recipe = recipe_of(weights, tmp_path)
    shown = next(iter(load_splits(recipe.data, recipe.model).test))[0]
    assert shown.shape[1:] == (3, 224, 224)


def test_the_data_guides_functions_make_splits_and_a_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, arrays, loaders, metric = blocks("own-data.md", "python")
    named, measured = blocks("own-data.md", "toml")[4:]
    module = as_module("flowers", monkeypatch, arrays, metric)
    splits = load_splits(recipe_of(named, tmp_path).data)
    assert next(iter(splits.train))[0].shape == (32, 3, 16, 16)

    def my_datasets(root: str) -> list[TensorDataset]:
        return [TensorDataset(torch.zeros(6, 3, 8, 8) + n, torch.arange(6) % 3) for n in range(3)]

    assert describe(run_block(loaders, my_datasets=my_datasets)["loaders"]())["train"] == 6
    settings = recipe_of(measured, tmp_path).evaluate.metrics["rose_recall_percent"]
    assert settings.function == "flowers:rose_recall_percent"
    logits = torch.eye(3)[torch.tensor([1, 1, 0, 2, 1])]
    assert module.rose_recall_percent(logits, torch.tensor([1, 0, 1, 2, 1])) == pytest.approx(200 / 3)


def test_the_model_guides_networks_are_elastic_and_its_recipes_build_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    net, saving, published, own_rule, _ = blocks("own-model.md", "python")
    named, elastic, rules, replaced, form = blocks("own-model.md", "toml")
    module = as_module("flower_net", monkeypatch, net, published)
    monkeypatch.chdir(tmp_path)
    torch.save(module.FlowerNet(48).state_dict(), "flower_net.pt")
    run_block(saving)
    recipe = recipe_of(named, tmp_path)
    model = load_model(recipe.model.name, recipe.model.weights, dict(recipe.model.options))
    assert torch.equal(model.state_dict()["conv.bias"], load_file("flower_net.safetensors")["conv.bias"])
    settings = recipe_of(elastic, tmp_path).elastic
    supernet = make_elastic(model, torch.zeros(1, 3, 16, 16), settings)
    assert [(knob.choices[0], knob.choices[-1]) for knob in supernet.space.knobs] == [(24, 96)]

    ruled = make_elastic(model, torch.zeros(1, 3, 16, 16), recipe_of(named + rules, tmp_path).elastic)
    assert {knob.name: knob.choices[:2] for knob in ruled.space.knobs} == {"conv": (40, 48), "more": (16, 32)}
    assert recipe_of(named + form, tmp_path).elastic.form == "graph"

    norm = as_module("loudness", monkeypatch, own_rule).LoudnessNorm
    layers = (nn.Conv2d(3, 16, 1), norm(16), nn.ReLU(), nn.Conv2d(16, 3, 1))
    supernet = make_elastic(nn.Sequential(*layers), torch.zeros(1, 3, 8, 8))
    narrow = extract(supernet, supernet.space.smallest())
    assert len(narrow.get_parameter("1.weight")) == narrow[1].channels == supernet.space.knobs[0].smallest

    (command,) = blocks("own-model.md", "sh")
    assert run_command(command.split()[1:]) == 0
    assert "conv" in capsys.readouterr().out
    recipe = recipe_of(replaced, tmp_path)
    assert recipe.model.options == {"num_classes": 3, "weights": "IMAGENET1K_V1"}
    model = load_model(recipe.model.name, None, {"num_classes": 3})
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_everything_that_guides_and_examples_link_to_exists() -> None:
    for page in (*GUIDES.glob("*.md"), EXAMPLES / "README.md"):
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), (page, link)


def test_the_examples_page_names_every_example() -> None:
    page = (EXAMPLES / "README.md").read_text("utf-8")
    files = {path.name for path in (*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.toml"))}
    assert set(re.findall(r"^\| `(\S+)`", page, flags=re.MULTILINE)) == files
    for line in re.findall(r"^subnet-search run (\S+)", page, flags=re.MULTILINE):
        parse_recipe((ROOT / line).read_text("utf-8"))
