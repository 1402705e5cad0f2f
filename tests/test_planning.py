"""Arithmetic of plans: what fits, what gives way, and that the machine may turn out slower than measured."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from subnet_search.deadline import Deadline
from subnet_search.planning import (
    FEWEST_EVALUATIONS,
    MARGIN,
    ROAD,
    UNITS,
    Planner,
    Rate,
    Standing,
    in_seconds,
    make_plan,
    plan_to_json,
    road_of,
    seconds_left,
    shortened,
    table,
    wanted,
)
from subnet_search.recipe import Recipe, parse_recipe

RATES = {
    "prepare": Rate(1.0),
    "teacher": Rate(0.5, 2.0),
    "rank": Rate(1.0),
    "train": Rate(0.5, 4.0),
    "search": Rate(1.0, 0.5),
    "finetune": Rate(0.5, 1.0),
    "test": Rate(0.25),
    "export": Rate(2.0),
    "report": Rate(3.0),
}


def recipe_with(**tables: str) -> Recipe:
    told = {"model": "epochs = 20", "train": "epochs = 40", "finetune": "epochs = 10", "search": ""} | tables
    told["model"] += '\nname = "a:b"'
    return parse_recipe("\n".join(f"[{name}]\n{keys}" for name, keys in told.items()))


RECIPE = recipe_with()  # 20 + 40 epochs, 300 evaluations, 3 sub-nets of 10 epochs


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_road_with_all_the_time_does_what_the_recipe_says_and_takes_the_sum_of_its_parts() -> None:
    plan = make_plan(RECIPE, RATES, Standing())
    assert plan.amounts == {"teacher": 20, "train": 40, "search": 300, "finetune": 10}
    train, search, tune = 0.5 + 40 * 4, 1 + 300 * 0.5, 3 * (0.5 + 10 * 1.0)
    assert plan.total_s == pytest.approx(
        1 + (0.5 + 20 * 2) + 1 + train + search + tune + 4 * 0.25 + 3 * 2 + 3
    )
    assert plan.after_s("finetune") == pytest.approx(4 * 0.25 + 3 * 2 + 3)
    assert plan.fits


@pytest.mark.parametrize("left_s", [40, 60, 100, 200, 350, 1e6])
def test_a_plan_fits_with_its_margin_and_no_share_of_the_recipe_that_is_larger_does(left_s: float) -> None:
    plan = make_plan(RECIPE, RATES, Standing(), left_s)
    asked = wanted(RECIPE)
    assert plan.fits
    assert MARGIN * plan.total_s <= left_s
    if plan.amounts == asked:
        return
    nexts = [
        (plan.amounts[stage] + 1) / asked[stage] for stage in asked if plan.amounts[stage] < asked[stage]
    ]
    share = min(nexts) + 1e-6  # where the first stage gets one more
    more = {
        stage: max(min(n, FEWEST_EVALUATIONS if stage == "search" else 1), math.floor(share * n))
        for stage, n in asked.items()
    }
    assert MARGIN * sum(seconds_left(RECIPE, RATES, Standing(), more).values()) > left_s


def test_a_plan_that_cannot_fit_is_the_smallest_one_and_says_so() -> None:
    plan = make_plan(RECIPE, RATES, Standing(), 5.0)
    assert plan.amounts == {"teacher": 1, "train": 1, "search": FEWEST_EVALUATIONS, "finetune": 1}
    assert not plan.fits


def test_zero_epochs_stay_zero_and_a_recipe_with_few_evaluations_keeps_them() -> None:
    recipe = recipe_with(model="epochs = 0", finetune="epochs = 0", search="evaluations = 4")
    plan = make_plan(recipe, RATES, Standing(), 1.0)
    assert plan.amounts == {"teacher": 0, "train": 1, "search": 4, "finetune": 0}
    assert plan.seconds["teacher"] == 0


def test_a_stage_that_has_begun_keeps_its_epochs_and_needs_only_what_is_left_of_them() -> None:
    standing = Standing(frozenset({"prepare", "teacher", "rank"}), {"train": 40}, {"train": 30, "search": 0})
    plan = make_plan(RECIPE, RATES, standing, 80.0)
    assert plan.amounts["train"] == 40
    assert plan.seconds["train"] == pytest.approx(0.5 + 10 * 4)
    assert plan.amounts["search"] < 300
    assert [plan.seconds[stage] for stage in ("prepare", "teacher", "rank")] == [0, 0, 0]


def test_evaluations_on_record_and_subnets_that_are_tuned_cost_nothing_again() -> None:
    standing = Standing(frozenset(ROAD[:4]), {"finetune": 10}, {"search": 290}, tuned=2, exported=1)
    plan = make_plan(RECIPE, RATES, standing)
    assert plan.seconds["search"] == pytest.approx(1 + 10 * 0.5)
    assert plan.seconds["finetune"] == pytest.approx(0.5 + 10)
    assert plan.seconds["export"] == pytest.approx(2 * 2.0)


def test_minutes_of_the_recipe_bound_the_search() -> None:
    plan = make_plan(recipe_with(search="minutes = 0.5"), RATES, Standing())
    assert plan.seconds["search"] == pytest.approx(1 + 30)


def test_subnets_under_limits_and_the_knee_are_counted() -> None:
    search = 'choose_under = [{ macs = "25%" }, { macs = "50%" }]\nchoose_knee = true\n'
    assert make_plan(recipe_with(search=search), RATES, Standing()).seconds["export"] == pytest.approx(3 * 2)
    assert make_plan(recipe_with(search="choose = 5"), RATES, Standing()).seconds["test"] == pytest.approx(
        6 / 4
    )


@pytest.mark.parametrize(("epochs", "warmup"), [(40, None), (10, 0.25), (1, 0.025), (0, 0.0)])
def test_a_shorter_training_warms_up_for_the_same_share(epochs: int, warmup: float | None) -> None:
    change = shortened(RECIPE.train, epochs, 40)
    assert change["epochs"] == epochs
    assert change.get("warmup_epochs") == warmup


def test_nothing_of_no_epochs_is_shortened_to_nothing() -> None:
    assert shortened(RECIPE.train, 0, 0) == {"epochs": 0}


def drive(planner: Planner, clock: Clock, slower: float) -> tuple[dict[str, int], float]:
    """Goes the whole road on a machine `slower` than measured; the amounts done and the seconds that took."""
    standing, amounts, start_s = Standing(), {}, clock.now_s
    for place, stage in enumerate(road_of(planner.recipe)):
        standing = replace(standing, done=frozenset(road_of(planner.recipe)[:place]))
        plan = planner.plan(standing)
        raw = seconds_left(planner.recipe, planner.rates, standing, plan.amounts)[stage] * slower
        took_s, share = raw, 1.0
        if stage == "search":
            limit_s = planner.deadline.left_s() - MARGIN * plan.after_s(stage)
            took_s = min(raw, max(limit_s, 0.0))
            share = took_s / raw
        clock.now_s += took_s
        planner.note(plan, stage, took_s, share)
        if stage in UNITS:
            amounts[stage] = round(plan.amounts[stage] * share)
    return amounts, clock.now_s - start_s


@pytest.mark.parametrize(("slower", "minutes"), [*itertools.product([0.5, 1.0, 2.0], [2, 4, 8])])
def test_on_a_machine_half_or_twice_as_fast_as_measured_the_road_ends_in_time(
    slower: float, minutes: float
) -> None:
    clock = Clock()
    planner = Planner(RECIPE, RATES, Deadline(minutes, clock))
    promised = planner.plan(Standing()).amounts
    amounts, took_s = drive(planner, clock, slower)
    assert took_s <= 60 * minutes
    assert promised["teacher"] - 1 <= amounts["teacher"] <= promised["teacher"]
    if slower == 2.0:  # later stages give way
        assert amounts["search"] < promised["search"] or promised["search"] == 300
        assert amounts["search"] >= 1
        assert amounts["finetune"] >= 1


def test_a_machine_is_never_taken_for_faster_than_measured() -> None:
    planner = Planner(RECIPE, RATES, Deadline(10, Clock()))
    planner.note(planner.plan(Standing()), "teacher", 1.0)
    assert planner.slower == 1.0


def test_the_smallest_minutes_of_a_refusal_are_enough() -> None:
    clock = Clock()
    planner = Planner(RECIPE, RATES, Deadline(0.1, clock))
    clock.now_s += 12  # measuring
    minutes = planner.smallest_minutes(Standing())
    again = Planner(RECIPE, RATES, Deadline(minutes, clock))
    clock.now_s += 12
    assert again.plan(Standing()).fits
    assert not Planner(RECIPE, RATES, Deadline(minutes / 2, clock)).plan(Standing()).fits


PATH = recipe_with(search='searcher = "progressive"', progressive="epochs = 20")
PATH_RATES = {**RATES, "path": Rate(10.0), "join": Rate(0.5, 3.0)}


def test_a_progressive_road_has_a_path_and_joint_training_and_others_have_not() -> None:
    plan = make_plan(PATH, PATH_RATES, Standing())
    assert tuple(plan.seconds) == ROAD
    assert plan.amounts["join"] == 20
    assert (plan.seconds["path"], plan.seconds["join"]) == (10, pytest.approx(0.5 + 20 * 3))
    assert plan.after_s("train") == pytest.approx(plan.total_s - sum(list(plan.seconds.values())[:4]))
    assert not {"path", "join"} & {
        *road_of(RECIPE),
        *wanted(RECIPE),
        *make_plan(RECIPE, RATES, Standing()).seconds,
    }


def test_joint_training_shrinks_with_the_other_epochs_and_keeps_those_it_has_begun_with() -> None:
    plan = make_plan(PATH, PATH_RATES, Standing(), 200)
    assert plan.fits
    assert plan.amounts["join"] == pytest.approx(plan.amounts["train"] / 2, abs=1)
    standing = Standing(frozenset(ROAD[:5]), {"join": 20}, {"join": 15})
    plan = make_plan(PATH, PATH_RATES, standing, 100)
    assert plan.amounts["join"] == 20
    assert plan.seconds["join"] == pytest.approx(0.5 + 5 * 3)
    rows = {row["stage"]: row for row in plan_to_json(PATH, plan.amounts, standing, plan=plan)["stages"]}
    assert (rows["path"]["done"], rows["join"]["amount"], rows["join"]["asked"]) == (True, 20, 20)
    assert "20 epochs of 3.0 s" in table(PATH, plan, PATH_RATES, standing)


def test_a_search_that_ends_by_itself_takes_no_longer_than_what_there_is() -> None:
    rates = {**PATH_RATES, "search": Rate(1.0, 0.5, most=80)}
    assert make_plan(PATH, rates, Standing()).seconds["search"] == pytest.approx(1 + 80 * 0.5)
    standing = Standing(finished={"search": 60})
    assert make_plan(PATH, rates, standing).seconds["search"] == pytest.approx(1 + 20 * 0.5)


def test_the_stored_plan_keeps_what_was_planned_for_stages_that_are_done() -> None:
    first = make_plan(RECIPE, RATES, Standing(), 60)
    before = plan_to_json(RECIPE, first.amounts, Standing(), plan=first, minutes=1.0)
    standing = Standing(frozenset(ROAD[: ROAD.index("finetune")]))
    second = make_plan(RECIPE, RATES, standing, 20)
    stored = plan_to_json(RECIPE, second.amounts, standing, plan=second, minutes=1.0, before=before)
    rows = {row["stage"]: row for row in stored["stages"]}
    assert tuple(rows) == road_of(RECIPE)
    assert rows["search"] == {**{r["stage"]: r for r in before["stages"]}["search"], "done": True}
    assert rows["finetune"]["amount"] == second.amounts["finetune"]
    assert rows["finetune"]["asked"] == 10
    assert not rows["finetune"]["done"]


def test_the_table_has_a_line_for_each_stage_and_says_what_is_less_than_asked_for() -> None:
    plan = make_plan(RECIPE, RATES, Standing(), 60)
    lines = table(RECIPE, plan, RATES, Standing(frozenset({"prepare"}))).splitlines()
    assert [line.split()[0] for line in lines] == [*road_of(RECIPE), "in"]
    assert lines[0].split()[1] == "done"
    assert f"{plan.amounts['train']} of 40 epochs of 4.0 s" in lines[3]
    assert "3 sub-nets, " in lines[5]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 ms"), (0.0123, "12 ms"), (1, "1.0 s"), (59, "59 s"), (90, "1.5 min"), (5400, "1.5 h")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert in_seconds(seconds) == text
