"""What is chosen from a front, against the definition."""

from __future__ import annotations

import numpy as np
import pytest

from search_spaces import CostTable, Knob, SearchSpace, SubnetConfig, SubnetSearchError
from subnet_search.choosing import choose_spread, choose_under, order_after_tuning
from subnet_search.record import Evaluation, Objective, ParetoFront

SPACE = SearchSpace((Knob("a", tuple(range(1, 101)), "width"),))
COSTS = CostTable(("a",), (1,), {("a", "a"): 10}, {("a",): 3}, {("a",): 12}, ({("a",): 1},))
OBJECTIVES = (Objective("top1_percent", "max"), Objective("macs", "min"))


def front_of(widths: list[int]) -> ParetoFront:
    """Accuracy rises with width, so all are members."""
    found = [Evaluation(SubnetConfig({"a": w}), (50 + 10 * np.log10(w), 10.0 * w * w)) for w in widths]
    return ParetoFront.of(OBJECTIVES, found)


def widths_of(chosen: list[Evaluation]) -> list[int]:
    return [evaluation.config["a"] for evaluation in chosen]


def test_spread_takes_the_best_of_equal_parts_of_the_cost_range() -> None:
    widths = [1, 2, 9, 11, 50, 99, 100]  # MACs 10 to 100,000: two parts meet at width 10
    assert widths_of(choose_spread(front_of(widths), 2)) == [9, 100]
    assert widths_of(choose_spread(front_of(widths), 1)) == [100]


def test_spread_fills_empty_parts_with_the_members_farthest_away() -> None:
    assert widths_of(choose_spread(front_of([1, 90, 95, 100]), 3)) == [1, 100, 90]


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_spread_gives_as_many_different_members_as_there_are(count: int) -> None:
    front = front_of([3, 7, 20, 21, 80])
    chosen = choose_spread(front, count)
    assert len({member.config for member in chosen}) == len(chosen) == min(count, 5)
    assert {member.config for member in chosen} <= {member.config for member in front}


def test_spread_over_a_front_without_costs_or_members() -> None:
    only = ParetoFront.of(OBJECTIVES[:1], [Evaluation(SubnetConfig({"a": 1}), (50.0,))])
    assert widths_of(choose_spread(only, 3)) == [1]
    assert choose_spread(front_of([]), 3) == []


@pytest.mark.parametrize("bound", [10, 999, 20_000, 10**6])
def test_under_a_cost_limit_the_most_accurate_member_is_best(bound: int) -> None:
    widths = [1, 5, 9, 30, 44, 100]
    best = choose_under(front_of(widths), {"macs": bound}, SPACE, COSTS)
    assert best.config["a"] == max(w for w in widths if 10 * w * w <= bound)


def test_under_an_accuracy_limit_the_cheapest_member_is_best() -> None:
    best = choose_under(front_of([1, 5, 9, 30, 44, 100]), {"top1_percent": 59.5}, SPACE, COSTS)
    assert best.config["a"] == 9


def test_limits_may_be_on_costs_that_are_no_objective() -> None:
    best = choose_under(front_of([1, 5, 9, 30]), {"params": 30}, SPACE, COSTS)
    assert best.config["a"] == 9


def test_a_limit_that_no_member_meets_is_told_with_the_nearest_value() -> None:
    with pytest.raises(SubnetSearchError, match=r"nearest values there are {'macs': 250\.0}"):
        choose_under(front_of([5, 9]), {"macs": 100}, SPACE, COSTS)


def test_after_tuning_a_dearer_subnet_may_be_beaten_by_a_cheaper_one() -> None:
    front = front_of([5, 9, 30])
    tuned = {5: 88.0, 9: 87.0, 30: 91.0}
    metrics = {
        m.config: {"before": {"top1_percent": m.values[0]}, "after": {"top1_percent": tuned[m.config["a"]]}}
        for m in front
    }
    order = order_after_tuning(front, metrics, SPACE, COSTS)
    keys = {m.config["a"]: m.config.key for m in front}
    assert [one.key for one in order] == [keys[30], keys[5], keys[9]]
    assert [one.beaten_by for one in order] == [(), (), (keys[5],)]
    assert [one.place_before for one in order] == [1, 3, 2]
