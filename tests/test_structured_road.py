"""Branches and adaptive depth from a recipe to a report; bootstrapping as the recipe's step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reports import write_report
from search_spaces import InvalidInput
from search_spaces.presets import BRANCH_KNOB
from subnet_search import ElasticSettings, make_elastic
from subnet_search.cli import run_command
from subnet_search.data import load_splits
from subnet_search.dynamic.branches_of_run import load_branches
from subnet_search.pipeline import advance, begin, read_settings
from subnet_search.recipe import Recipe, parse_recipe
from subnet_search.record import open_run
from subnet_search.small_models import SmallResNet
from subnet_search.training.bootstrap import BootstrapStep
from subnet_search.training.branches import BranchStep
from subnet_search.training.of_recipe import step_of
from subnet_search.training.sandwich import SandwichStep
from subnet_search.training.skip_paths import SkipPathStep
from tests.small import small_supernet

RECIPE = """
[model]
name = "subnet_search.small_models:digits_cnn"
epochs = 2
options = { width = 8 }
[train]
epochs = 3
lr = 0.03
[device]
threads = 1
[search]
searcher = "random"
evaluations = 12
choose = 2
[finetune]
epochs = 1
[elastic]
"""


def recipe_of(lines: str) -> Recipe:
    return parse_recipe(RECIPE + lines).model_copy(update={"name": "r"})


@pytest.mark.slow
def test_adaptive_depth_goes_the_whole_road(tmp_path: Path) -> None:
    with begin(recipe_of("adaptive_depth = true"), tmp_path) as run:
        advance(run)
        names = run.names()
        proofs = [run.read_json(name) for name in names if name.endswith("proof.json")]
        assert len(proofs) == 2
        assert all(proof["passed"] for proof in proofs)
        assert [knob["kind"] for knob in run.read_json("space.json")["knobs"]] == ["depth"] * 3
        assert len([line for line in run.journal.lines() if line["kind"] == "result"]) == 8
    assert "TTT" in write_report(tmp_path / "r").read_text("utf-8")


@pytest.mark.slow
def test_branches_go_the_whole_road_and_back_into_an_anytime_loop(tmp_path: Path) -> None:
    with begin(recipe_of("branches = 4\ndepth = false"), tmp_path) as run:
        with pytest.raises(InvalidInput, match="not trained yet"):
            load_branches(tmp_path / "r")
        advance(run)
        assert all(run.read_json(name)["passed"] for name in run.names() if name.endswith("proof.json"))
        told = {
            line["config"][BRANCH_KNOB]: line["values"]
            for line in run.journal.lines()
            if line["kind"] == "result"
        }
    assert sorted(told) == [1, 2, 3, 4]
    net = load_branches(tmp_path / "r")
    with open_run(tmp_path / "r", write=False) as run:
        recipe = read_settings(run)
    right, count = torch.zeros(4), 0
    with torch.inference_mode():
        for images, labels in load_splits(recipe.data, recipe.model).search_val:
            right += torch.tensor([float((row.argmax(1) == labels).sum()) for row in net.rows(images)])
            count += len(labels)
    for k, top1 in enumerate(
        (100 * right / count).tolist(), start=1
    ):  # running statistics beside measured ones
        assert top1 == pytest.approx(told[k]["top1_percent"], abs=3.0)
    assert "row by row" in write_report(tmp_path / "r").read_text("utf-8")


def test_a_recipe_names_its_step() -> None:
    supernet = small_supernet()
    assert isinstance(step_of(parse_recipe(RECIPE).train, supernet), SandwichStep)
    asked = RECIPE.replace(
        "lr = 0.03", 'lr = 0.03\nmethod = "bootstrap"\nviews = "crop"\nensemble = true\ndecay = 0.9'
    )
    step = step_of(parse_recipe(asked).train, supernet)
    assert isinstance(step, BootstrapStep)
    assert (step.views, step.ensemble, step.decay) == ("crop", True, 0.9)
    example = torch.zeros(1, 1, 8, 8)
    for settings, kind in (({"adaptive_depth": True}, SkipPathStep), ({"branches": 2}, BranchStep)):
        supernet = make_elastic(SmallResNet((2,), 4, 4, 1), example, ElasticSettings(**settings))
        assert isinstance(step_of(parse_recipe(RECIPE).train, supernet), kind)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('method = "bootstrapp"', "method"),
        ("ensemble = true", 'ensemble is an option of method = "bootstrap"'),
        ('views = "crop"', 'views is an option of method = "bootstrap"'),
        ('method = "bootstrap"\ndistill = false', "whose smaller nets learn from an average"),
        ('method = "bootstrap"\ndecay = 1.0', "decay"),
    ],
)
def test_a_wrong_step_is_refused_with_its_line(
    lines: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "r.toml"
    file.write_text(RECIPE.replace("lr = 0.03", lines), "utf-8")
    assert run_command(["run", str(file), "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "line " in told


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("adaptive_depth = true\n[train]\nmethod = 'bootstrap'", "which is trained in a way of its own"),
        ("branches = 2\n[train]\nsampling = 'uniform'", "sampling = 'uniform' cannot stand beside"),
        ("branches = 2\n[search]\nsearcher = 'progressive'", "walks down widths one by one"),
        ("branches = 1", "branches"),
        ("branches = 2\nstep = 4", "cannot stand beside step"),
    ],
)
def test_tables_that_contradict_each_other_are_refused(lines: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        parse_recipe('[model]\nname = "subnet_search.small_models:digits_cnn"\n[elastic]\n' + lines)
