from __future__ import annotations

import itertools

import numpy as np
import pytest

from subnet_search.record import hypervolume
from subnet_search.searchers.improvement import Improvement, pick_batch


def gain(front: np.ndarray, point: np.ndarray, reference: np.ndarray) -> float:
    return hypervolume(np.vstack([front, point]), reference) - hypervolume(front, reference)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_the_improvement_of_a_known_point_is_the_hypervolume_it_adds(number: int) -> None:
    rng = np.random.default_rng(number)
    front, points, reference = rng.random((8, number)), rng.uniform(-0.2, 1.2, (40, number)), np.ones(number)
    found = Improvement(front, reference)([column[:, None] for column in points.T], [np.ones(1)] * number)
    np.testing.assert_allclose(found, [gain(front, point, reference) for point in points], atol=1e-12)


@pytest.mark.parametrize("number", [2, 3])
def test_the_improvement_of_an_unsure_point_is_the_mean_over_all_it_may_be(number: int) -> None:
    rng = np.random.default_rng(0)
    front, reference = rng.random((6, number)), np.ones(number)
    values, weights = rng.random((number, 4)), rng.dirichlet(np.ones(4), number)
    expected = sum(
        np.prod([weights[j, place] for j, place in enumerate(places)])
        * gain(front, np.array([values[j, place] for j, place in enumerate(places)]), reference)
        for places in itertools.product(range(4), repeat=number)
    )
    assert Improvement(front, reference)(list(values[:, None]), list(weights))[0] == pytest.approx(expected)


def test_an_empty_front_leaves_all_that_the_reference_bounds() -> None:
    found = Improvement(np.empty((0, 2)), np.array([2.0, 3.0]))(
        [np.array([[1.0]]), np.array([[1.0]])], [np.ones(1)] * 2
    )
    assert found == pytest.approx([2.0])


@pytest.mark.slow
def test_a_front_of_many_points_in_three_objectives_is_thinned_to_its_spread() -> None:
    rng = np.random.default_rng(0)
    front = np.abs(rng.standard_normal((400, 3)))
    front /= np.linalg.norm(front, axis=1, keepdims=True)
    points = rng.random((50, 3)) * 0.6
    improvement = Improvement(front, np.ones(3))
    exact = np.array([gain(front, point, np.ones(3)) for point in points])
    found = improvement([column[:, None] for column in points.T], [np.ones(1)] * 3)
    assert np.corrcoef(found, exact)[0, 1] > 0.97


@pytest.mark.parametrize("seed", range(3))
def test_a_batch_is_chosen_one_after_the_other_as_if_the_former_had_come_out_as_expected(seed: int) -> None:
    rng = np.random.default_rng(seed)
    losses = [rng.random((300, 1)), rng.random((300, 5))]
    weights = [np.ones(1), np.full(5, 0.2)]
    front, reference = rng.random((5, 2)), np.ones(2)
    expected = np.stack([losses[0][:, 0], losses[1].mean(axis=1)], axis=1)
    chosen: list[int] = []
    for _ in range(8):
        gains = Improvement(np.vstack([front, expected[chosen]]), reference)(losses, weights)
        gains[chosen] = -1
        chosen.append(int(np.argmax(gains)))
    assert pick_batch(losses, weights, np.ones(300), front, reference, 8) == chosen


def test_a_batch_ends_where_nothing_is_to_be_gained() -> None:
    losses = [np.array([[0.5], [0.6], [0.9]]), np.array([[0.5], [0.4], [0.9]])]
    assert pick_batch(losses, [np.ones(1)] * 2, np.ones(3), np.empty((0, 2)), np.ones(2), 3) == [0, 1]
