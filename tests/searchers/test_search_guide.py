"""What docs/guides/search.md shows works."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from search_spaces import CostTable, Knob, SearchSpace, SubnetConfig
from subnet_search.recipe import parse_recipe
from subnet_search.record import Evaluation, Objective

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "search.md"
SPACE = SearchSpace(tuple(Knob(f"k{i}", (1, 2, 3)) for i in range(4)))
COSTS = CostTable(SPACE.names, (1,) * 4, {(n,): 1 for n in SPACE.names}, {(): 1}, {(): 4}, ({(): 4},))


def evaluate(config: SubnetConfig) -> Evaluation:
    row = SPACE.encode([config])[0]
    return Evaluation(config, (float(row.sum()), float(70 + row @ [1, 2, 3, 4])))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)


def test_the_python_of_the_guide_runs() -> None:
    drawn = list(dict.fromkeys(SPACE.sample(np.random.default_rng(0), 40)))
    names = {
        "space": SPACE,
        "costs": COSTS,
        "objectives": (Objective("macs", "min"), Objective("top1_percent", "max")),
        "evaluator": evaluate,
        "configs": drawn[:20],
        "accuracies": [evaluate(config).values[1] for config in drawn[:20]],
        "others": drawn[20:],
    }
    for block in blocks("python"):
        exec(block, names)
    low, high = np.asarray(names["low"]), np.asarray(names["high"])
    assert low.shape == (len(drawn) - 20,)
    assert (low <= high).all()
    assert "cheap" in names


def test_the_settings_of_the_guide_are_accepted() -> None:
    (block,) = blocks("toml")
    recipe = parse_recipe('[model]\nname = "torchvision:resnet18"\n[data]\nsource = "digits"\n' + block, "x")
    assert (recipe.search.searcher, recipe.search.limits) == ("guided", {"macs": "50%"})
