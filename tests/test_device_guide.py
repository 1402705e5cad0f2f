"""What the guide on devices shows is accepted."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import get_args

from typer.main import get_command

from subnet_search.cli import app
from subnet_search.recipe import parse_recipe
from subnet_search.settings import PRECISIONS, RuntimeName

GUIDE = (Path(__file__).parent.parent / "docs" / "guides" / "device.md").read_text("utf-8")


def test_the_recipes_are_accepted() -> None:
    own, board = re.findall(r"```toml\n(.*?)```", GUIDE, flags=re.DOTALL)
    recipe = parse_recipe(f'[model]\nname = "torchvision:resnet18"\n{own}')
    assert (recipe.device.runtime, recipe.device.input_px) == ("openvino", 224)
    assert parse_recipe(f'[model]\nname = "torchvision:resnet18"\n{board}').device.command_unit == "ms"


def test_the_commands_have_such_options() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    lines = "".join(
        re.findall(r"^```\n(subnet-search.*?)^```", GUIDE, flags=re.DOTALL | re.MULTILINE)
    ).splitlines()
    assert len(lines) == 6
    for _, command, *arguments in map(shlex.split, lines):
        commands[command].make_context(command, arguments)


def test_the_table_names_every_runtime_and_the_comment_its_precisions() -> None:
    assert re.findall(r"^\| `(\w+)` \|", GUIDE, flags=re.MULTILINE) == list(get_args(RuntimeName))
    for precision in ("bf16", "int8"):
        [named] = re.findall(rf'"{precision}": ([\w, ]+)', GUIDE)
        assert set(named.split(", ")) == {name for name, has in PRECISIONS.items() if precision in has}
