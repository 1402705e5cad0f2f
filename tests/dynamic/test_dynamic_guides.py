"""What the guides of this package show runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from subnet_search import make_elastic, save_subnets
from subnet_search.dynamic import branches_of_run
from subnet_search.recipe import parse_recipe
from subnet_search.settings import ElasticSettings, TrainSettings
from subnet_search.small_models import SmallResNet, digits_cnn
from tests.small import small_splits

GUIDES = Path(__file__).parents[2] / "docs" / "guides"


def blocks(guide: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (GUIDES / guide).read_text("utf-8"), flags=re.DOTALL)


@pytest.mark.slow
def test_the_controller_guides_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ElasticSettings(min_share=0.25, step=4)
    supernet = make_elastic(digits_cnn().eval(), torch.zeros(1, 1, 8, 8), settings)
    scope: dict[str, Any] = {
        "supernet": supernet,
        "images": [torch.randn(16, 1, 8, 8)],
        "x": torch.randn(2, 1, 8, 8),
    }
    saving, from_set, running, in_onnx = blocks("controller.md")
    exec(compile(saving, "the guide", "exec"), scope)
    save_subnets("path.subnets.safetensors", supernet, scope["subnets"])
    for block in (from_set, running):
        exec(compile(block, "the guide", "exec"), scope)
    first = scope["logits"]
    assert first.shape == (2, 10)
    pytest.importorskip("onnxruntime")
    exec(compile(in_onnx, "the guide", "exec"), scope)
    assert scope["logits"].shape == (2, 10)


@pytest.mark.slow
def test_the_anytime_guides_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = small_splits(num_train=16)
    scope: dict[str, Any] = {
        "model": SmallResNet((2, 2), 8, 5, in_channels=1).eval(),
        "example": torch.zeros(1, 1, 8, 8),
        "x": torch.randn(2, 1, 8, 8),
        "images": torch.randn(4, 1, 8, 8),
        "labels": torch.tensor([0, 4, 2, 2]),
        "batches": [],
        "splits": splits,
        "settings": TrainSettings(epochs=1, device="cpu"),
    }
    *shown, loading = blocks("anytime.md")
    for number, block in enumerate(shown):
        exec(compile(block, "the guide", "exec"), scope)
        if number == 0:
            scope["optimizer"] = torch.optim.SGD(scope["net"].parameters(), 0.01)
            scope["batches"] = [(scope["images"], scope["labels"])]
            before = scope["net"].head.biases[0].clone()
        if number == 1:
            assert not torch.equal(scope["net"].head.biases[0], before)
    assert scope["found"].reason in ("complete", "confidence")
    assert scope["loss"].isfinite()
    assert list(scope["paths"].configs()) == ["FF", "FT", "TF", "TT"]
    monkeypatch.setattr(branches_of_run, "load_branches", lambda folder: scope["net"])
    exec(compile(loading, "the guide", "exec"), scope)
    assert scope["found"].reason in ("complete", "confidence")


def test_the_anytime_guides_recipe_is_accepted() -> None:
    [recipe] = re.findall(r"```toml\n(.*?)```", (GUIDES / "anytime.md").read_text("utf-8"), flags=re.DOTALL)
    assert parse_recipe(recipe).elastic.adaptive_depth
    assert parse_recipe(recipe.replace("adaptive_depth = true", "branches = 4")).elastic.branches == 4
