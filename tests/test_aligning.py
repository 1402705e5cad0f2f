from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from search_spaces import Knob, SearchSpace, SubnetConfig
from subnet_search.aligning import paired_change, rounded, steps_of_knobs, table
from tests.small import small_supernet

SPACE = SearchSpace((Knob("a", (4, 6, 8, 10, 12), "width"), Knob("b", (2, 4, 6, 10), "width")))


@pytest.mark.parametrize(
    ("way", "config", "wanted"),
    [
        ("up", (6, 2), (8, 4)),
        ("down", (6, 6), (4, 4)),
        ("up", (10, 6), (12, 10)),  # 10 is the whole width of b
        ("down", (8, 2), (8, 2)),  # nothing below 2 is a multiple of 4
    ],
)
def test_widths_go_to_the_next_multiple_of_the_step(
    way: str, config: tuple[int, int], wanted: tuple[int, int]
) -> None:
    one = SubnetConfig({"a": config[0], "b": config[1]})
    assert tuple(rounded(SPACE, one, {"a": 4, "b": 4}, way).values()) == wanted
    assert rounded(SPACE, one, {}, way) == one


def test_the_interval_of_a_paired_change_holds_the_truth_about_as_often_as_it_says() -> None:
    rng, held, of, trials = np.random.default_rng(0), 0, 400, 2000
    kinds = rng.choice(4, size=(trials, of), p=[0.7, 0.06, 0.02, 0.22])  # right both, lost, won, wrong both
    for row in kinds:
        change, low, high = paired_change(row <= 1, (row == 0) | (row == 2))
        assert low < change < high
        held += low <= -4.0 <= high
    assert 0.935 <= held / trials <= 0.975


def test_equal_answers_still_leave_room_for_chance() -> None:
    same = np.array([True] * 90 + [False] * 10)
    change, low, high = paired_change(same, same)
    assert (change, low) == (0.0, -high)
    assert 1.0 < high < 3.0


def test_a_knob_takes_the_largest_step_of_the_layers_that_write_its_channels() -> None:
    supernet = small_supernet()
    steps = steps_of_knobs(supernet, {"conv 3x3": 8, "conv 1x1": 4})
    assert set(steps) == set(supernet.groups)
    assert max(steps.values()) == 8
    assert set(steps_of_knobs(supernet, {}).values()) == {1}


def test_the_table_tells_what_has_such_widths_already_and_what_could_not_be_timed() -> None:
    up: dict[str, Any] = {"macs_percent": 5.0, "top1_points": (-0.5, -1.0, 0.0), "reason": "no sort"}
    member = {"key": "k", "top1_percent": 90.0, "up": {**up, "time_percent": None}, "down": None}
    told = table({"profile": {"runtime": "x"}, "steps": {"conv 3x3": 8}, "members": [member]})
    assert "-0.50 (-1.00 to +0.00)" in told
    assert "no sort" in told
    assert "has these widths already" in told
