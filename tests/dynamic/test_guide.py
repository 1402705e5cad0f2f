"""What the guide shows is accepted and does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import subnet_search.dynamic
from subnet_search import BootstrapStep
from subnet_search.cli import app
from subnet_search.dynamic.storing import Stored
from subnet_search.recipe import parse_recipe
from tests.dynamic.made import IMAGES, gate_splits, slimming_of
from tests.small import small_supernet

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "dynamic.md").read_text("utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", GUIDE, flags=re.MULTILINE | re.DOTALL)


def test_the_recipe_is_accepted_as_written() -> None:
    table, step = blocks("toml")
    assert parse_recipe(f'[model]\nname = "torchvision:resnet18"\n{step}').train.views == "crop+flip"
    settings = parse_recipe(f'[model]\nname = "torchvision:resnet18"\n{table}').dynamic
    assert settings.places == ("layer2",)
    assert settings.targets == (0.5, 0.7)


def test_the_commands_have_these_options() -> None:
    [commands] = blocks("sh")
    command = next(
        c for c in app.registered_commands if c.callback is not None and c.callback.__name__ == "dynamic"
    )
    assert command.callback is not None
    for option in re.findall(r"--(\w+)", commands):
        assert option in command.callback.__annotations__


def test_the_loading_and_the_training_work_as_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    loading, training, *_ = blocks("python")
    net = slimming_of(small_supernet()).net
    given: list[Any] = []

    def load(folder: str, point: int) -> Stored:
        given.append((folder, point))
        return Stored(net, (), {})

    monkeypatch.setattr(subnet_search.dynamic, "load_slimming", load)
    scope: dict[str, Any] = {"images": IMAGES}
    with torch.inference_mode():
        exec(loading, scope)
    assert given == [("runs/recipe/dynamic", 1)]
    assert len(scope["logits"]) == len(scope["ways"]) == len(IMAGES)

    def train(supernet: Any, splits: Any, step: Any) -> None:
        assert step == BootstrapStep(ensemble=True)

    monkeypatch.setattr("subnet_search.training.train", train)
    exec(training, {"supernet": None, "splits": gate_splits()})
