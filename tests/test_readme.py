"""The README's code runs, its recipe is accepted and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from search_spaces import CostTable
from subnet_search.cli import run_command
from subnet_search.data import TensorBatches
from subnet_search.recipe import parse_recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def small_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


def loader(count: int, seed: int) -> TensorBatches:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randn(count, 3, 32, 32, generator=generator) + labels[:, None, None, None]
    return TensorBatches(images, labels, batch_size=16)


def test_the_ten_lines_of_python_run_on_a_network_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = blocks("python")
    monkeypatch.chdir(tmp_path)
    for long, short in {
        "epochs=30": "epochs=1",
        "Budget(300)": "Budget(8)",
        "20_000_000": "900_000",
    }.items():
        assert code.count(long) == 1
        code = code.replace(long, short)
    names = {"net": small_net(), "train_loader": loader(48, 0), "val_loader": loader(24, 1)}
    exec(compile(code, "README.md", "exec"), names := {**names, "test_loader": loader(24, 2)})
    costs = names["supernet"].costs
    assert isinstance(costs, CostTable)
    space = names["supernet"].space
    assert costs.macs(space.encode([names["best"]]))[0] <= 900_000
    assert {path.name for path in (tmp_path / "my-subnet").iterdir()} == {"net.safetensors", "net.pt2"}
    program = torch.export.load(tmp_path / "my-subnet" / "net.pt2").module()
    images = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program(images), names["tuned"].net.eval()(images))


def test_the_recipe_is_accepted() -> None:
    (recipe,) = blocks("toml")
    assert parse_recipe(recipe).search.limits == {"macs": "50%"}


def test_every_command_shown_exists(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(["--help"])
    known = capsys.readouterr().out
    lines = [line for line in README.splitlines() if line.startswith("subnet-search ")]
    shown = {word for line in lines for word in re.findall(r"[a-z]+", line.split("  ")[0])[2:]}
    assert {"quickstart", "resume", "plot"} <= shown
    commands = {line.split()[1] for line in lines}
    assert [command for command in commands if command not in known] == []


def test_every_file_and_make_target_shown_exists() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / link).exists(), link
