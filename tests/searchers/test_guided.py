from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np
import pytest

from search_spaces import CostTable, InvalidInput, Knob, SearchSpace, SubnetConfig
from subnet_search.record import Evaluation, Images, Objective, ParetoFront
from subnet_search.searchers import Searcher, SpaceExhausted, make_searcher
from subnet_search.searchers.guided import LEAST, START, GuidedSearcher

KNOBS = 8
SPACE = SearchSpace(tuple(Knob(f"k{i}", (1, 2, 3, 4)) for i in range(KNOBS)))
COSTS = CostTable(SPACE.names, (1,) * KNOBS, {(n,): 1 for n in SPACE.names}, {(): 1}, {(): 4}, ({(): 4},))
OBJECTIVES = (Objective("macs", "min"), Objective("top1_percent", "max"))
WEIGHTS = np.random.default_rng(0).exponential(size=KNOBS)


def accuracy(config: SubnetConfig) -> float:
    values = SPACE.encode([config])[0]
    return float(90 - 30 * np.exp(-0.25 * (WEIGHTS @ np.sqrt(values) - WEIGHTS.sum())))


def answer(config: SubnetConfig) -> Evaluation:
    return Evaluation(config, (float(sum(config.values())), accuracy(config)))


def drive(searcher: Searcher, count: int) -> list[Evaluation]:
    found = []
    for _ in range(count):
        found.append(answer(searcher.ask()))
        searcher.tell(found[-1])
    return found


def volume(found: list[Evaluation]) -> float:
    return ParetoFront.of(OBJECTIVES, found).hypervolume({"macs": 32.0, "top1_percent": 50.0})


def test_it_begins_with_subnets_spread_over_cost() -> None:
    found = [e.values[0] for e in drive(make_searcher("guided", SPACE, OBJECTIVES, costs=COSTS), START)]
    assert found[:2] == [8, 32]
    assert np.diff(sorted(found)).max() <= 4


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_it_finds_in_twenty_four_evaluations_more_than_nsga2_in_eighty(seed: int) -> None:
    guided = drive(make_searcher("guided", SPACE, OBJECTIVES, seed=seed, costs=COSTS), 24)
    assert volume(guided) > volume(drive(make_searcher("nsga2", SPACE, OBJECTIVES, seed=seed), 80))


@pytest.mark.parametrize("way", ["cost table", "exact", "measured"])
def test_costs_are_known_from_the_table_from_a_closed_form_or_learnt(way: str) -> None:
    exact = (lambda rows: rows.sum(axis=1)) if way == "exact" else None
    objectives = (
        Objective("macs" if way == "cost table" else "latency_ms", "min", exact=exact),
        OBJECTIVES[1],
    )
    searcher = GuidedSearcher(SPACE, objectives, costs=COSTS if way == "cost table" else None)
    drive(searcher, LEAST + 1)
    assert ("latency_ms by" in searcher.verdict) == (way == "measured")
    assert "top1_percent by gp: Kendall's tau 0." in searcher.verdict


def test_values_that_cannot_be_predicted_are_left_to_evolution() -> None:
    said, rng = [], np.random.default_rng(0)
    searcher = GuidedSearcher(SPACE, OBJECTIVES, costs=COSTS)
    for _ in range(20):
        config = searcher.ask()
        searcher.tell(Evaluation(config, (float(sum(config.values())), float(rng.normal(80, 3)))))
        said.append(searcher.verdict)
    assert any(v.endswith("not used (from 0.2 on): NSGA-II proposes") for v in said)


def test_proposals_under_way_are_not_asked_for_again_and_push_others_elsewhere() -> None:
    searcher = make_searcher("guided", SPACE, OBJECTIVES, costs=COSTS)
    drive(searcher, 16)
    waiting = [searcher.ask() for _ in range(12)]
    costs = {sum(config.values()) for config in waiting}
    assert len(set(waiting)) == 12
    assert len(costs) >= 6


@pytest.mark.slow
def test_failed_ones_are_never_asked_for_again_and_what_fails_together_is_avoided() -> None:
    searcher, failed, asked = GuidedSearcher(SPACE, OBJECTIVES, costs=COSTS), 0, []
    for number in range(70):
        asked.append(config := searcher.ask())
        broken = config["k0"] >= 3
        failed += broken and number >= 40
        searcher.tell(Evaluation(config, (), "failed", "k0") if broken else answer(config))
    assert len(set(asked)) == 70
    assert failed <= 10  # of 30; half of the space fails


def test_estimates_of_what_was_stopped_are_learnt_from_but_are_no_part_of_the_front() -> None:
    searcher = GuidedSearcher(SPACE, OBJECTIVES, costs=COSTS)
    stopped = Images(seen=10, of=100, rival="x")
    for config in SPACE.sample(np.random.default_rng(0), 30):
        values = (float(sum(config.values())), 99.0)
        searcher.tell(Evaluation(config, values, source="predicted", spread=(0.0, 9.0), images=stopped))
    searcher.ask()
    assert searcher.verdict == f"fewer than {LEAST} evaluations to predict from: NSGA-II proposes"


@pytest.mark.slow
def test_wide_spaces_with_limits_are_searched_by_breeding_candidates() -> None:
    wide = SearchSpace(tuple(Knob(f"w{i}", tuple(range(8, 72, 8))) for i in range(30)))
    macs = dict.fromkeys(itertools.pairwise(wide.names), 1)
    costs = CostTable(wide.names, (8,) * 30, macs, {(): 1}, {(): 4}, ({(): 4},))
    limit = float(0.4 * costs.macs(wide.encode([wide.largest()]))[0])

    def run(name: str, count: int) -> float:
        searcher = make_searcher(name, wide, OBJECTIVES, costs=costs, limits={"macs": limit})
        found = []
        for _ in range(count):
            config = searcher.ask()
            rows = wide.encode([config])
            score = 100 * float(np.mean(np.sqrt(rows / 64) * np.linspace(1.6, 0.4, 30)))
            found.append(Evaluation(config, (float(costs.macs(rows)[0]), score)))
            searcher.tell(found[-1])
        assert max(e.values[0] for e in found) <= limit
        return ParetoFront.of(OBJECTIVES, found).hypervolume({"macs": limit, "top1_percent": 30.0})

    assert run("guided", 32) > run("nsga2", 80)


@pytest.mark.slow
def test_proposals_take_little_time_at_five_thousand_rows() -> None:
    wide = SearchSpace(tuple(Knob(f"w{i}", tuple(range(8, 72, 8))) for i in range(20)))
    costs = CostTable(wide.names, (8,) * 20, {(n,): 1 for n in wide.names}, {(): 1}, {(): 4}, ({(): 4},))
    searcher = GuidedSearcher(wide, OBJECTIVES, costs=costs)
    for config in dict.fromkeys(wide.sample(np.random.default_rng(0), 5_000)):
        values = np.array(list(config.values()))
        searcher.tell(Evaluation(config, (float(values.sum()), float(np.sqrt(values) @ np.arange(20)))))
    start_s = time.process_time()
    for _ in range(200):
        searcher.tell(answer_wide(searcher.ask()))
    assert (time.process_time() - start_s) / 200 < 0.5


def answer_wide(config: SubnetConfig) -> Evaluation:
    values = np.array(list(config.values()))
    return Evaluation(config, (float(values.sum()), float(np.sqrt(values) @ np.arange(20))))


@pytest.mark.slow
def test_a_bound_on_what_is_measured_is_kept_to() -> None:
    slowness, rng = np.random.default_rng(5).exponential(size=KNOBS), np.random.default_rng(9)
    objectives = (Objective("latency_ms", "min"), OBJECTIVES[1])

    def inside(name: str) -> float:
        searcher, met = make_searcher(name, SPACE, objectives, costs=COSTS, bounds={"latency_ms": 3.5}), 0
        for _ in range(30):
            config = searcher.ask()
            latency_ms = float(slowness @ SPACE.encode([config])[0] / 3 * np.exp(rng.normal(0, 0.02)))
            searcher.tell(Evaluation(config, (latency_ms, accuracy(config))))
            met += latency_ms <= 3.5
        return met / 30

    assert inside("random") < 0.3
    assert inside("guided") > 0.5  # of the first ten, which nothing is known of, a few


@pytest.mark.parametrize("bound", [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_where_no_subnet_meets_a_bound_or_one_does_the_search_goes_on(bound: float) -> None:
    few = SearchSpace(tuple(Knob(f"k{i}", (1, 2, 3)) for i in range(3)))
    objectives = (Objective("latency_ms", "min"), OBJECTIVES[1])
    searcher = GuidedSearcher(few, objectives, bounds={"latency_ms": bound})
    for _ in range(27):
        config = searcher.ask()
        values = few.encode([config])[0]
        searcher.tell(Evaluation(config, (float(values.sum() - 2), float(values @ [1, 2, 3]))))
    with pytest.raises(SpaceExhausted):
        searcher.ask()


def test_a_bound_is_on_an_objective() -> None:
    with pytest.raises(InvalidInput, match="objectives macs, top1_percent, got 'mac'; did you mean"):
        GuidedSearcher(SPACE, OBJECTIVES, bounds={"mac": 3.0})


def test_costs_that_are_no_objectives_help_to_predict() -> None:
    objectives = (Objective("latency_ms", "min"), OBJECTIVES[1])
    searcher = GuidedSearcher(SPACE, objectives, known=(lambda rows: rows.sum(axis=1),))
    asked = [searcher.ask() for _ in range(START)]
    assert [sum(config.values()) for config in asked[:2]] == [8, 32]  # spread over what is known


def test_a_seed_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"seed of a search must be a whole number .* got -1"):
        GuidedSearcher(SPACE, OBJECTIVES, seed=-1)


def test_few_subnets_within_the_limits_of_a_space_too_large_to_list_are_all_found() -> None:
    wide = SearchSpace(tuple(Knob(f"k{i}", tuple(range(1, 11))) for i in range(5)))  # 100,000 sub-nets
    costs = CostTable(wide.names, (1,) * 5, {(n,): 1 for n in wide.names}, {(): 1}, {(): 4}, ({(): 4},))
    searcher = GuidedSearcher(wide, OBJECTIVES, costs=costs, limits={"macs": 7})
    asked = []
    for _ in range(21):
        asked.append(searcher.ask())
        values = list(asked[-1].values())
        score = 50.0 + sum((i + 1) ** 2 * value for i, value in enumerate(values))
        searcher.tell(Evaluation(asked[-1], (float(sum(values)), score)))
    assert len(set(asked)) == 21
    with pytest.raises(SpaceExhausted):
        searcher.ask()


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))])
def test_cheap_subnets_that_all_fail_are_given_up(seed: int) -> None:
    searcher, ok = GuidedSearcher(SPACE, OBJECTIVES, costs=COSTS, seed=seed), []
    for _ in range(50):
        config = searcher.ask()
        ok.append(config["k0"] >= 2)
        searcher.tell(answer(config) if ok[-1] else Evaluation(config, (), "failed", "too narrow"))
    in_a_row = max(len(run) for run in "".join("x."[right] for right in ok).split("."))
    assert in_a_row < 10
    assert sum(ok[25:]) >= 13


def test_an_objective_that_never_changes_does_not_switch_the_search_off() -> None:
    objectives = (*OBJECTIVES, Objective("params", "min"))

    def asked(objectives: tuple[Objective, ...], more: tuple[float, ...]) -> list[SubnetConfig]:
        searcher, found = GuidedSearcher(SPACE, objectives, costs=COSTS), []
        for _ in range(25):
            found.append(searcher.ask())
            searcher.tell(Evaluation(found[-1], (*answer(found[-1]).values, *more)))
        return found

    assert asked(objectives, (1.0,)) == asked(OBJECTIVES, ())


@pytest.mark.parametrize(
    ("exact", "came"),
    [
        (lambda rows: np.full(len(rows), np.nan), "some that are not finite"),
        (lambda rows: np.where(rows[:, 0] > 1, np.inf, 1.0), "some that are not finite"),
        (lambda rows: rows[:, :1], r"shape \(\d+, 1\)"),
    ],
)
def test_closed_forms_that_give_no_numbers_are_refused_at_once(
    exact: Callable[[np.ndarray], np.ndarray], came: str
) -> None:
    objectives = (Objective("top1_percent", "max"), Objective("cost", "min", exact=exact))
    with pytest.raises(InvalidInput, match=f"exact of objective 'cost' must give one finite number .*{came}"):
        GuidedSearcher(SPACE, objectives).ask()


def test_values_as_large_as_a_float_can_be_are_taken() -> None:
    searcher = GuidedSearcher(SPACE, OBJECTIVES, costs=COSTS)
    for number in range(20):
        config = searcher.ask()
        macs, score = answer(config).values
        searcher.tell(Evaluation(config, (macs, -1.7e308 if number % 3 == 0 else score)))
    assert len(searcher.ask()) == len(SPACE.names)
