from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from search_spaces import InvalidInput, SubnetConfig
from subnet_search.record import Evaluation, Images, Objective, check_objectives

CONFIG = SubnetConfig({"stem": 8})


def test_a_goal_is_min_or_max() -> None:
    with pytest.raises(InvalidInput, match=r"'macs' must be \"min\" or \"max\", got 'low'"):
        Objective("macs", "low")  # type: ignore[arg-type]


def test_smaller_losses_are_better_whatever_the_goal() -> None:
    assert Objective("macs", "min").loss(3) < Objective("macs", "min").loss(4)
    assert Objective("top1_percent", "max").loss(4) < Objective("top1_percent", "max").loss(3)


def test_a_bound_is_the_worst_allowed_value() -> None:
    assert Objective("latency_ms", "min").meets(5, bound=5)
    assert not Objective("latency_ms", "min").meets(5.1, bound=5)
    assert not Objective("top1_percent", "max").meets(89.9, bound=90)


@pytest.mark.parametrize("values", [(), (float("nan"),), (1.0, float("inf"))])
def test_an_evaluation_without_finite_values_is_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(InvalidInput, match=r'needs finite values.*status="failed"'):
        Evaluation(CONFIG, values)


def test_a_failed_evaluation_needs_no_values() -> None:
    assert not Evaluation(CONFIG, (), "failed", "out of memory").ok


def test_values_become_plain_floats_and_evaluations_can_be_in_sets() -> None:
    evaluation = Evaluation(CONFIG, np.array([1, 2]))  # type: ignore[arg-type]
    assert evaluation.values == (1.0, 2.0)
    assert type(evaluation.values[0]) is float
    assert len({evaluation, Evaluation(CONFIG, (1.0, 2.0))}) == 1


def test_spread_has_one_number_for_each_value() -> None:
    for wrong in ((0.1,), (0.1, -1.0), (0.1, float("inf")), (0.1, float("nan"))):
        with pytest.raises(InvalidInput, match="one finite number >= 0 for each value"):
            Evaluation(CONFIG, (1.0, 2.0), spread=wrong)


@pytest.mark.parametrize(
    ("counts", "more", "message"),
    [
        ((0, 9, 0), {"rival": "a"}, "from 1 to all images, got 0 of 9"),
        ((10, 9, 0), {}, "from 1 to all images, got 10 of 9"),
        ((9, 9, -1), {}, "and -1 to calibrate"),
        ((9, 9, 0), {"right": b"1"}, "one bit for each of 9 images"),
        ((8, 9, 0), {"right": b"12", "rival": "a"}, "that were all seen, got 2 bytes for 8"),
        ((8, 9, 0), {}, "has a rival if it was stopped, got '' after 8 of 9"),
        ((9, 9, 0), {"rival": "a"}, "has a rival if it was stopped, got 'a' after 9 of 9"),
    ],
)
def test_images_that_cannot_be_are_refused(
    counts: tuple[int, int, int], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        Images(*counts, **more)


def test_what_was_stopped_is_not_measured() -> None:
    stopped = Images(3, 9, rival="a")
    with pytest.raises(InvalidInput, match="has source=\"predicted\", got 'measured'"):
        Evaluation(CONFIG, (1.0,), images=stopped)
    assert not Evaluation(CONFIG, (1.0,), source="predicted", images=stopped).in_full


def test_objectives_in_a_set_have_no_order_and_are_refused() -> None:
    with pytest.raises(InvalidInput, match="need an order"):
        check_objectives({Objective("macs", "min"), Objective("top1_percent", "max")})


@pytest.mark.parametrize("objectives", [(), (Objective("macs", "min"), Objective("macs", "max"))])
def test_objectives_are_at_least_one_and_each_name_once(objectives: tuple[Objective, ...]) -> None:
    with pytest.raises(InvalidInput, match="each name once"):
        check_objectives(objectives)
