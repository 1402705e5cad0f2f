"""The time of a search, and the front it leaves."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from search_spaces import Knob, SearchSpace, SubnetConfig, SubnetSearchError
from subnet_search.fronts import _search_minutes, read_front, search_front, write_front
from subnet_search.recipe import parse_recipe
from subnet_search.record import Evaluation, Objective, ParetoFront, Run, create_run
from subnet_search.searchers import SearchResult
from subnet_search.workbench import Workbench

OBJECTIVES = (Objective("top1_percent", "max"), Objective("macs", "min"))


def bench_in(folder: Path, search: str = "") -> Workbench:
    recipe = parse_recipe(f'[model]\nname = "a:b"\n[search]\n{search}\n')
    return Workbench(create_run(folder / "run", ""), recipe, lambda _: None)


def evaluate(run: Run, context: str, seconds: float) -> None:
    n = run.journal.next_n
    run.journal.ask(n, SubnetConfig({"width": n}), context, "random")
    run.journal.result(n, {"macs": 1.0}, seconds=seconds)


def test_a_search_ends_at_its_moment_however_long_its_record_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_in(tmp_path)
    assert _search_minutes(bench, "now") is None
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    bench.search_until_s = 1030.0
    assert _search_minutes(bench, "now") == pytest.approx(0.5)
    for context, seconds in (("now", 60.0), ("now", 120.0), ("before", 500.0)):
        evaluate(bench.run, context, seconds)
    assert _search_minutes(bench, "now") == pytest.approx(3.5)
    bench.search_until_s = 900.0  # too late: one evaluation, and it is over
    assert 3 < (_search_minutes(bench, "now") or 0) < 3.001


def test_minutes_of_the_recipe_stay_a_bound(tmp_path: Path) -> None:
    bench = bench_in(tmp_path, "minutes = 0.25")
    assert _search_minutes(bench, "now") == 0.25
    bench.search_until_s = time.monotonic() + 600
    assert _search_minutes(bench, "now") == 0.25


@dataclass
class Failing:
    """Stands in for an evaluator; fails for all widths below `least`."""

    least: int
    objectives = OBJECTIVES
    context = "c"

    def __call__(self, config: SubnetConfig) -> Evaluation:
        if config["width"] < self.least:
            raise ValueError("metric 'm' fails")
        return Evaluation(config, (50.0, float(config["width"])))


def searched(folder: Path, least: int) -> list[str]:
    said: list[str] = []
    bench = bench_in(folder, 'objectives = ["top1_percent", "macs"]')
    bench.say = said.append
    space, costs = SearchSpace((Knob("width", (1, 2, 3)),)), None
    vars(bench).update(evaluator=Failing(least), space=space, costs=costs, limits=lambda asked: {})
    search_front(bench)
    return said


def test_failed_evaluations_are_told(tmp_path: Path) -> None:
    assert searched(tmp_path / "none", 0) == ["  3 evaluations, 1 sub-nets on the front"]
    [said] = searched(tmp_path / "some", 2)
    told = "1 of them failed (the last one: ValueError: metric 'm' fails), 1 sub-nets on the front"
    assert said == f"  3 evaluations, {told}"


def test_where_all_evaluations_fail_the_reason_is_told_and_not_the_limits(tmp_path: Path) -> None:
    with pytest.raises(
        SubnetSearchError, match="all 3 evaluations failed, the last one: ValueError: metric 'm'"
    ):
        searched(tmp_path / "all", 9)


def test_a_front_is_read_as_it_was_written_and_no_members_leave_the_one_before(tmp_path: Path) -> None:
    bench = bench_in(tmp_path)
    found = [Evaluation(SubnetConfig({"width": n}), (float(n), 10.0 * n)) for n in (1, 2, 3)]
    front = ParetoFront.of(OBJECTIVES, found)
    write_front(bench.run, SearchResult(front, tuple(found)), OBJECTIVES, "searching")
    write_front(bench.run, SearchResult(ParetoFront.of(OBJECTIVES, []), ()), OBJECTIVES)
    assert read_front(bench.run) == front
    assert bench.run.read_json("front.json")["state"] == "searching"
