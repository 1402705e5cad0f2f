"""How far a run is: what its checkpoints, results and front say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from search_spaces import SubnetConfig
from subnet_search.fronts import is_searched
from subnet_search.pipeline import searched_again
from subnet_search.recipe import Recipe, parse_recipe
from subnet_search.record import Run, create_run
from subnet_search.settings import FinetuneSettings, TrainSettings
from subnet_search.standing import begun_epochs, is_on_a_path, num_evaluated
from subnet_search.training import PlainStep, SandwichStep
from subnet_search.training.checkpoint import Checkpoints, Place
from subnet_search.training.loop import describe_step, fit_identity
from subnet_search.workbench import Workbench

RECIPE = parse_recipe('[model]\nname = "a:b"\n[finetune]\nepochs = 10\n[search]\nevaluations = 3\n')


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with create_run(tmp_path / "run", "") as opened:
        yield opened


def leave_checkpoint(run: Run, name: str, stage: str, settings: Any, epoch: int) -> None:
    net = nn.Linear(2, 2)
    identity = fit_identity(stage, settings)
    Checkpoints(run, name, identity).save(net, torch.optim.SGD(net.parameters()), Place(epoch=epoch))


def leave_front(run: Run, state: str | None, evaluations: int) -> None:
    told = {} if state is None else {"state": state}
    run.write_json("front.json", {"objectives": [], "members": [], "evaluations": evaluations, **told})


def evaluate(run: Run, count: int, context: str = "now") -> None:
    for _ in range(count):
        n = run.journal.next_n
        run.journal.ask(n, SubnetConfig({"width": n}), context, "random")
        run.journal.result(n, {"macs": 1.0})


@pytest.mark.parametrize(("step", "stage"), [(PlainStep(), "teacher"), (SandwichStep(num_random=1), "train")])
def test_a_stage_with_a_checkpoint_has_begun_with_its_epochs(run: Run, step: Any, stage: str) -> None:
    assert begun_epochs(run, RECIPE) == {}
    leave_checkpoint(run, "checkpoint", describe_step(step), TrainSettings(epochs=7), epoch=3)
    assert begun_epochs(run, RECIPE) == {stage: (7, 3)}
    assert Workbench(run, RECIPE, lambda _: None).amount(stage) == 7
    assert Workbench(run, RECIPE, lambda _: None).amount("search") == 3


def test_joint_training_of_a_path_has_a_checkpoint_of_its_own(run: Run) -> None:
    leave_checkpoint(run, "checkpoint-join", "SandwichStep(...)", TrainSettings(epochs=5), epoch=2)
    assert begun_epochs(run, RECIPE) == {"join": (5, 2)}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [('[search]\nsearcher = "progressive"\n', True), ('[search]\nsearcher = "tpe"\n', False), ("", False)],
)
def test_the_settings_of_a_run_tell_whether_it_is_on_a_path(
    settings: str, expected: bool, tmp_path: Path
) -> None:
    with create_run(tmp_path / "other", settings) as run:
        assert is_on_a_path(run) == expected


def test_subnets_are_tuned_as_long_as_the_first_of_them(run: Run) -> None:
    run.write_json("subnets/abc/config.json", {})
    assert begun_epochs(run, RECIPE) == {}
    run.write_json("subnets/abc/metrics.json", {"epochs": 4})
    assert begun_epochs(run, RECIPE) == {"finetune": (4, 0)}
    leave_checkpoint(
        run, "subnets/xyz/checkpoint", "finetune with Supernet", FinetuneSettings(epochs=4), epoch=2
    )
    assert begun_epochs(run, RECIPE) == {"finetune": (4, 2)}


def test_runs_of_earlier_versions_were_tuned_as_their_recipe_says(run: Run) -> None:
    run.write_json("subnets/abc/metrics.json", {"before": {}})
    assert begun_epochs(run, RECIPE) == {"finetune": (10, 0)}


def test_only_evaluations_of_the_last_weights_count(run: Run) -> None:
    assert num_evaluated(run) == 0
    evaluate(run, 2, "before")
    evaluate(run, 3)
    assert num_evaluated(run) == 3


@pytest.mark.parametrize(
    ("state", "chosen", "done", "again", "again_with_time"),
    [
        (None, False, True, False, False),
        (None, True, True, False, False),
        ("complete", True, True, False, False),
        ("cut short", False, False, False, False),
        ("cut short", True, True, False, True),
        ("searching", False, False, False, False),
        ("searching", True, False, True, True),
    ],
)
def test_a_search_is_done_when_it_is_complete_or_was_chosen_from_and_more_time_opens_it_again(
    run: Run, state: str | None, chosen: bool, done: bool, again: bool, again_with_time: bool
) -> None:
    evaluate(run, 2)
    leave_front(run, state, 2)
    if chosen:
        run.write_json("subnets/abc/config.json", {})
    assert is_searched(run) == done
    for more_time, expected in ((False, again), (True, again_with_time)):
        found = searched_again(run, RECIPE, more_time=more_time)
        assert found == (frozenset({"search", "finetune"}) if expected else frozenset())


def test_a_search_that_has_all_its_evaluations_is_not_opened_again(run: Run) -> None:
    evaluate(run, RECIPE.search.evaluations)
    leave_front(run, "cut short", 3)
    run.write_json("subnets/abc/config.json", {})
    assert searched_again(run, RECIPE, more_time=True) == frozenset()


def test_a_front_without_its_evaluations_is_searched_again(run: Run) -> None:
    assert not is_searched(run)
    leave_front(run, "complete", 1)
    assert not is_searched(run)


def test_without_a_plan_the_recipe_decides(run: Run) -> None:
    recipe: Recipe = RECIPE
    bench = Workbench(run, recipe, lambda _: None)
    assert [bench.amount(s) for s in ("teacher", "train", "search", "finetune")] == [0, 30, 3, 10]
