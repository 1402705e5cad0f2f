from __future__ import annotations

import numpy as np
import pytest

from predictors import Features
from search_spaces import CostTable, InvalidInput, Knob, SearchSpace

SPACE = SearchSpace(
    (
        Knob("stem", (8, 16, 32)),
        Knob("block", (0, 1), "depth"),
        Knob("block.width", (8, 24)),
        Knob("op", (7, 3, 5), "choice"),
    ),
    {"block.width": (("block",),)},
)
MACS = {("stem",): 2, ("block", "block.width", "stem"): 3}
COSTS = CostTable(SPACE.names, (8, 1, 8, 1), MACS, {("stem",): 1}, {(): 4}, ({(): 4},))
ROWS = SPACE.encode(
    [
        {"stem": 8, "block": 0, "block.width": 8, "op": 3},
        {"stem": 16, "block": 1, "block.width": 8, "op": 7},
        {"stem": 32, "block": 1, "block.width": 24, "op": 5},
    ]
)


def test_knobs_are_places_of_choices_and_unordered_ones_one_hot() -> None:
    features = Features(SPACE)
    expected = [  # stem, block, block.width and whether it rests, op
        [0.0, 0.0, 0.5, 1.0, 0.0, 1.0, 0.0],
        [0.5, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0],
        [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0],
    ]
    np.testing.assert_array_equal(features(ROWS), expected)
    assert features.groups.tolist() == [0, 1, 2, 2, 3, 3, 3]


def test_one_hot_says_nothing_of_a_knob_that_rests_but_that_it_does() -> None:
    found = Features(SPACE, kinds=("one_hot",))(ROWS)
    assert found.shape == (3, 3 + 2 + 3 + 3)
    np.testing.assert_array_equal(found.sum(axis=1), [4, 4, 4])
    np.testing.assert_array_equal(found[0, 5:8], [0, 0, 1])


def test_layer_costs_are_what_each_value_adds_to_the_smallest() -> None:
    found = Features(SPACE, COSTS, kinds=("layer_costs",))(ROWS)
    most = 2 * 4 + 3 * 3 * 4
    np.testing.assert_allclose(found[2], np.array([2 * 3 + 3 * 3 * 3, 3 * 3 * 4, 3 * 2 * 4, 0]) / most)
    np.testing.assert_allclose(found[0], 0)


def test_costs_rise_with_what_they_are_costs_of() -> None:
    features = Features(SPACE, COSTS, kinds=("knobs", "cost"), exact=(lambda rows: rows[:, 0] ** 2,))
    found = features(ROWS)
    assert found.shape == (3, 7 + 3)
    assert features.groups.tolist()[-3:] == [4, 5, 6]
    assert (np.diff(found[:, -3:], axis=0) > 0).all()


def test_what_is_no_feature_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"features are knobs, .* got 'colour'"):
        Features(SPACE, kinds=("colour",))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="need the space's cost table"):
        Features(SPACE, kinds=("layer_costs",))
