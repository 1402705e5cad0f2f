from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from search_spaces import (
    COST_NAMES,
    CostTable,
    InvalidInput,
    Knob,
    SearchSpace,
    SubnetConfig,
    check_limits,
    project,
    within_limits,
)
from search_spaces.constraints import ORDERED

SpaceMaker = Callable[[int], SearchSpace]
CostMaker = Callable[[SearchSpace, int], CostTable]

# two blocks of widths (a, b) behind a stem; macs = stem + 100 a + 10 b
SPACE = SearchSpace(
    (
        Knob("stem", (1, 2, 3, 4), "width"),
        Knob("first", (0, 1), "depth"),
        Knob("a", (1, 2, 3, 4), "width"),
        Knob("second", (0, 1), "depth"),
        Knob("b", (1, 2, 3, 4), "width"),
    ),
    {"a": (("first",),), "b": (("second",),)},
)
TERMS = {("stem",): 1, ("a", "first"): 100, ("b", "second"): 10}
COSTS = CostTable(SPACE.names, (1,) * 5, TERMS, TERMS, TERMS, (TERMS,))


def draw(space: SearchSpace, costs: CostTable, seed: int) -> tuple[dict[str, float], list[SubnetConfig]]:
    """Two limits somewhere between smallest and largest, and configs."""
    rng = np.random.default_rng(seed)
    least, most = (costs.evaluate(space.encode([c])) for c in (space.smallest(), space.largest()))
    names = rng.choice(COST_NAMES, size=2, replace=False)
    limits = {n: float(least[n][0] + rng.random() * (most[n][0] - least[n][0])) for n in names.tolist()}
    return limits, space.sample(rng, 10)


def fits(space: SearchSpace, costs: CostTable, limits: dict[str, float], values: dict[str, int]) -> bool:
    x = space.encode([values])
    return all(getattr(costs, name)(x)[0] <= limit for name, limit in limits.items())


@pytest.mark.parametrize("seed", range(20))
def test_a_projected_config_meets_the_limits_and_a_feasible_one_stays(
    seed: int, random_space: SpaceMaker, random_costs: CostMaker
) -> None:
    space = random_space(seed)
    costs = random_costs(space, seed)
    limits, configs = draw(space, costs, seed)
    for config in configs:
        projected = project(space, costs, limits, config)
        assert fits(space, costs, limits, dict(projected))
        assert projected == space.canonical(projected) == project(space, costs, limits, projected)
        if fits(space, costs, limits, dict(config)):
            assert projected == config


@pytest.mark.parametrize("seed", range(20))
def test_no_width_of_a_projected_config_could_grow_further(
    seed: int, random_space: SpaceMaker, random_costs: CostMaker
) -> None:
    space = random_space(seed)
    costs = random_costs(space, seed)
    limits, configs = draw(space, costs, seed)
    for config in configs:
        projected = project(space, costs, limits, config)
        active = space.active_rows(space.encode([config, projected])).all(axis=0)
        for knob, is_active in zip(space.knobs, active, strict=True):
            if is_active and knob.kind in ("width", "branch"):
                assert projected[knob.name] <= config[knob.name]
                if projected[knob.name] < config[knob.name]:
                    larger = knob.choices[knob.choices.index(projected[knob.name]) + 1]
                    assert not fits(space, costs, limits, {**projected, knob.name: larger})


@pytest.mark.parametrize("seed", range(20))
def test_blocks_are_skipped_only_where_narrow_widths_are_not_enough(
    seed: int, random_space: SpaceMaker, random_costs: CostMaker
) -> None:
    space = random_space(seed)
    costs = random_costs(space, seed)
    limits, configs = draw(space, costs, seed)
    kinds = {knob.name: knob.kind for knob in space.knobs}
    for config in configs:
        narrow = {k.name: k.smallest if k.kind in ORDERED else config[k.name] for k in space.knobs}
        projected = project(space, costs, limits, config)
        same = all(projected[name] == config[name] for name in kinds if kinds[name] in ("depth", "choice"))
        assert same == fits(space, costs, limits, narrow)


def test_widths_shrink_together() -> None:
    assert project(SPACE, COSTS, {"macs": 333}, SPACE.largest()) == {
        "stem": 3, "first": 1, "a": 3, "second": 1, "b": 3,
    }  # fmt: skip


def test_what_is_left_of_the_limit_is_filled_up() -> None:
    projected = project(SPACE, COSTS, {"macs": 344}, SPACE.largest())
    assert projected == {"stem": 4, "first": 1, "a": 3, "second": 1, "b": 4}


def test_the_block_that_wastes_least_is_skipped() -> None:
    # all blocks kept cost at least 111; without the second 101, without the first 11
    assert project(SPACE, COSTS, {"macs": 110}, SPACE.largest()) == {
        "stem": 4, "first": 1, "a": 1, "second": 0, "b": 4,
    }  # fmt: skip
    assert project(SPACE, COSTS, {"macs": 30}, SPACE.largest()) == {
        "stem": 4, "first": 0, "a": 4, "second": 1, "b": 2,
    }  # fmt: skip
    assert project(SPACE, COSTS, {"macs": 2}, SPACE.largest()) == {
        "stem": 2, "first": 0, "a": 4, "second": 0, "b": 4,
    }  # fmt: skip


def blocks(*names: str) -> SearchSpace:
    return SearchSpace(tuple(Knob(name, (0, 1), "depth") for name in names))


def test_where_several_blocks_must_go_the_one_that_helps_most_goes_first() -> None:
    space = blocks("a", "b", "c", "d")
    terms = {("a",): 3, ("b",): 5, ("c",): 1, ("d",): 4}
    costs = CostTable(space.names, (1,) * 4, terms, {}, {}, ())
    assert project(space, costs, {"macs": 7}, space.largest()) == {"a": 1, "b": 0, "c": 0, "d": 1}


def test_a_block_that_does_not_help_is_not_skipped() -> None:
    space = blocks("idle", "a", "b")
    costs = CostTable(space.names, (1,) * 3, {}, {}, {}, ({("a",): 10}, {("b",): 10}, {("idle",): 1}))
    limits = {"peak_activation_bytes": 5}
    assert project(space, costs, limits, space.largest()) == {"idle": 1, "a": 0, "b": 0}


def test_blocks_inside_a_skipped_block_are_no_candidates() -> None:
    space = SearchSpace(blocks("inner", "outer", "a", "b").knobs, {"inner": (("outer",),)})
    costs = CostTable(space.names, (1,) * 4, {}, {}, {}, ({("a",): 10}, {("b",): 10}))
    config = {"inner": 1, "outer": 0, "a": 1, "b": 1}
    projected = project(space, costs, {"peak_activation_bytes": 5}, config)
    assert projected == {"inner": 1, "outer": 0, "a": 0, "b": 0}


def test_widths_shrink_in_proportion_whatever_their_number_of_choices() -> None:
    space = SearchSpace((Knob("fine", tuple(range(1, 102)), "width"), Knob("coarse", (1, 51, 101), "width")))
    costs = CostTable(space.names, (1, 1), {("fine",): 1, ("coarse",): 1}, {}, {}, ())
    assert project(space, costs, {"macs": 104}, space.largest()) == {"fine": 53, "coarse": 51}


def test_the_width_furthest_behind_grows_first() -> None:
    space = SearchSpace((Knob("a", (1, 2, 3, 4), "width"), Knob("b", (1, 4), "width")))
    costs = CostTable(space.names, (1, 1), {("a",): 10, ("b",): 10}, {}, {}, ())
    assert project(space, costs, {"macs": 70}, space.largest()) == {"a": 3, "b": 4}


def test_a_choice_without_order_gives_way_last() -> None:
    space = SearchSpace((Knob("op", (1, 9), "choice"), Knob("stem", (1, 2), "width")))
    costs = CostTable(space.names, (1, 1), {("op", "stem"): 1}, {}, {}, ())
    assert project(space, costs, {"macs": 9}, space.largest()) == {"op": 9, "stem": 1}
    assert project(space, costs, {"macs": 8}, space.largest()) == {"op": 1, "stem": 2}


def test_without_limits_only_the_canonical_form_is_taken() -> None:
    config = {"stem": 1, "first": 0, "a": 2, "second": 0, "b": 2}
    assert project(SPACE, COSTS, {}, config) == SPACE.canonical(config)


def test_a_limit_may_be_met_exactly() -> None:
    assert project(SPACE, COSTS, {"macs": 444}, SPACE.largest()) == SPACE.largest()
    assert project(SPACE, COSTS, {"macs": 1}, SPACE.largest()) == SPACE.smallest()


def test_an_infeasible_limit_is_answered_with_the_nearest_feasible_value() -> None:
    shifted = CostTable(SPACE.names, (1,) * 5, TERMS | {(): 1_000_000}, TERMS, TERMS, (TERMS,))
    for refuse in (check_limits, lambda *args: project(*args, SPACE.largest())):
        with pytest.raises(InvalidInput, match=r"macs <= 10,000; the nearest feasible value is 1,000,001"):
            refuse(SPACE, shifted, {"macs": 10_000, "params": 500})
    check_limits(SPACE, shifted, {"macs": 1_000_001})


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), float("inf"), True, "5", None])
def test_a_limit_that_is_no_positive_number_is_refused(limit: object) -> None:
    with pytest.raises(InvalidInput, match="the limit on macs must be a positive number, got"):
        check_limits(SPACE, COSTS, {"macs": limit})  # type: ignore[dict-item]


def test_a_limit_on_an_unknown_cost_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidInput, match="got 'parms'; did you mean 'params'"):
        check_limits(SPACE, COSTS, {"parms": 1})


def test_the_table_of_another_space_is_refused() -> None:
    other = SearchSpace(SPACE.knobs[::-1], SPACE.inactive_when)
    with pytest.raises(InvalidInput, match="same knobs in the same order"):
        check_limits(other, COSTS, {"macs": 100})


def test_within_limits_marks_each_row() -> None:
    x = SPACE.encode([SPACE.smallest(), SPACE.largest()])
    assert within_limits(COSTS, {"macs": 443, "params": 444}, x).tolist() == [True, False]
    assert within_limits(COSTS, {}, x).tolist() == [True, True]
