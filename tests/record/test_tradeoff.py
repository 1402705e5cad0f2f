"""Knee and prices against their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from search_spaces import InvalidInput, SubnetConfig
from subnet_search.record import Evaluation, Objective, ParetoFront, knee, prices

OBJECTIVES = (Objective("top1_percent", "max"), Objective("macs", "min"), Objective("params", "min"))


def front_of(points: list[tuple[float, ...]], objectives: tuple[Objective, ...] = OBJECTIVES) -> ParetoFront:
    """A front of points (top-1, MACs, params), those left out 0."""
    width = len(objectives)
    found = [
        Evaluation(SubnetConfig({"a": n}), (*point, *[0.0] * (width - len(point))))
        for n, point in enumerate(points)
    ]
    return ParetoFront.of(objectives, found)


def random_front(seed: int) -> ParetoFront:
    rng = np.random.default_rng(seed)
    return front_of([tuple(point) for point in rng.random((40, 3)).tolist()])


def distance_to_chord(point: np.ndarray, first: np.ndarray, last: np.ndarray) -> float:
    """The distance of a point to the line through two others, by the area of their triangle."""
    (ax, ay), (bx, by) = last - first, point - first
    return float(abs(ax * by - ay * bx) / np.hypot(ax, ay))


@pytest.mark.parametrize("seed", range(6))
def test_the_knee_is_the_farthest_from_the_chord_of_the_scaled_front(seed: int) -> None:
    front = random_front(seed)
    flat = sorted((e.values[1], e.values[0]) for e in front)
    kept = np.array([p for p in flat if not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in flat)])
    scaled = (kept - kept.min(axis=0)) / (kept.max(axis=0) - kept.min(axis=0))
    above = [point for point in scaled if point[1] > point[0] + 1e-9]
    best = max(above, key=lambda point: distance_to_chord(point, scaled[0], scaled[-1]), default=None)
    found = knee(front)
    if best is None:
        assert found is None
    else:
        assert found is not None
        macs, top1 = best * (kept.max(axis=0) - kept.min(axis=0)) + kept.min(axis=0)
        assert (found.member.values[1], found.member.values[0]) == pytest.approx((macs, top1))


def test_the_height_of_the_knee_is_in_points_of_accuracy() -> None:
    found = knee(front_of([(50, 0), (88, 25), (90, 100)]))
    assert found is not None
    assert (found.member.values[0], found.above_chord) == (88, pytest.approx(88 - (50 + 0.25 * 40)))


def test_units_do_not_move_the_knee() -> None:
    points = [(50.0, 1.0), (80.0, 2.0), (85.0, 4.0), (90.0, 9.0)]
    members = [knee(front_of([(p[0] * a, p[1] * b) for p in points])) for a, b in ((1, 1), (0.01, 1e9))]
    assert [found.member.config["a"] for found in members if found] == [1, 1]


@pytest.mark.parametrize(
    "points",
    [
        [],
        [(90, 5)],
        [(80, 1), (90, 5)],
        [(80, 1), (81, 3), (90, 5)],  # bends inwards
        [(80, 1), (85, 3), (90, 5)],  # straight
        [(80.1, 1), (80.2, 2), (80.3, 3)],  # straight but for rounding
        [(90, 5), (90, 5), (90, 5)],  # all equal
    ],
)
def test_a_front_that_does_not_bend_outwards_has_no_knee(points: list[tuple[float, ...]]) -> None:
    assert knee(front_of(points)) is None


def test_of_equally_good_knees_the_cheapest_is_taken() -> None:
    found = knee(front_of([(0, 0), (60, 20), (80, 40), (100, 100)]))
    assert found is not None
    assert found.member.values[0] == 60


def test_any_two_of_several_objectives_can_be_traded() -> None:
    front = front_of([(50, 1, 90), (80, 9, 40), (75, 5, 30), (40, 2, 10)])
    found = knee(front, cost="params", quality="top1_percent")
    assert found is not None
    assert found.member.values == (75, 5, 30)
    assert [step.extra_cost for step in prices(front, "params")] == [20, 10]


@pytest.mark.parametrize("seed", range(4))
def test_steps_lead_from_the_cheapest_to_the_best(seed: int) -> None:
    front = random_front(seed)
    steps = prices(front)
    values = np.array([member.values for member in front])
    best = values[values[:, 0].argmax()]
    assert steps[0].cheaper.values[1] == values[:, 1].min()
    assert steps[-1].dearer.values[0] == best[0]
    assert all(first.dearer == second.cheaper for first, second in itertools.pairwise(steps))
    assert sum(step.gain for step in steps) == pytest.approx(best[0] - steps[0].cheaper.values[0])
    for step in steps:
        assert step.extra_cost == pytest.approx(step.dearer.values[1] - step.cheaper.values[1])
        assert step.gain_per_cost * step.cost_per_gain == pytest.approx(1)
        assert min(step.gain, step.extra_cost) > 0


def test_a_price_is_gain_over_cost_and_the_other_way_round() -> None:
    [step] = prices(front_of([(80, 1_000_000), (86, 3_000_000)]))
    assert (1e6 * step.gain_per_cost, step.cost_per_gain) == pytest.approx((3, 1e6 / 3))


def test_quality_may_be_something_to_be_low() -> None:
    objectives = (Objective("macs", "min"), Objective("error_percent", "min"))
    front = front_of([(0, 50), (25, 12), (100, 10)], objectives)
    assert knee(front) is None  # nothing is to be high
    found = knee(front, cost="macs", quality="error_percent")
    assert found is not None
    assert (found.member.values, found.above_chord) == ((25, 12), pytest.approx(28))


def test_members_in_the_same_place_are_one() -> None:
    assert len(prices(front_of([(80, 1), (80, 1), (90, 2)]))) == 1


def test_a_front_of_one_objective_has_no_knee_and_no_prices() -> None:
    front = front_of([(80,)], OBJECTIVES[:1])
    assert (knee(front), prices(front)) == (None, [])


@pytest.mark.parametrize(
    ("cost", "quality", "message"),
    [
        ("mac", None, r"no objective 'mac'.*macs"),
        (None, "speed", "no objective 'speed'"),
        ("macs", "macs", "must be two objectives, got 'macs' for both"),
    ],
)
def test_objectives_that_are_not_there_are_refused(
    cost: str | None, quality: str | None, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        knee(front_of([(80, 1)]), cost, quality)
