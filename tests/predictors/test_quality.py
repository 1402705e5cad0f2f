from __future__ import annotations

import itertools

import numpy as np
import pytest

from predictors import AccuracyPredictor, coverage, kendall_tau, learning_curve, share_within, tau_near
from search_spaces import Knob, SearchSpace


@pytest.mark.parametrize("seed", range(4))
def test_tau_near_is_right_minus_wrong_pairs_of_which_one_is_marked(seed: int) -> None:
    rng = np.random.default_rng(seed)
    predicted, measured = rng.integers(0, 6, 12).astype(float), rng.integers(0, 6, 12).astype(float)
    near = rng.random(12) < 0.4
    right, total = 0, 0
    for i, j in itertools.combinations(range(12), 2):
        if (near[i] or near[j]) and measured[i] != measured[j]:
            right += int(np.sign(predicted[i] - predicted[j]) * np.sign(measured[i] - measured[j]))
            total += 1
    assert tau_near(predicted, measured, near) == pytest.approx(right / total)


def test_tau_of_everything_near_is_kendalls_tau() -> None:
    predicted, measured = np.random.default_rng(0).random((2, 30))
    assert tau_near(predicted, measured, np.ones(30, bool)) == pytest.approx(kendall_tau(predicted, measured))


def test_nothing_to_compare_gives_zero() -> None:
    assert kendall_tau(np.ones(5), np.arange(5.0)) == 0
    assert tau_near(np.arange(5.0), np.ones(5), np.ones(5, bool)) == 0


def test_shares_are_counted() -> None:
    assert share_within(np.array([9.0, 11.2]), np.array([10.0, 10.0])) == 0.5
    assert coverage(np.zeros(4), np.ones(4), np.array([0.0, 0.5, 1.0, 2.0])) == 0.75


def test_a_learning_curve_rises() -> None:
    space = SearchSpace(tuple(Knob(f"k{i}", (1, 2, 3, 4)) for i in range(5)))
    rng = np.random.default_rng(0)
    configs = list(dict.fromkeys(space.sample(rng, 200)))
    values = [float(sum(config.values()) + 0.5 * rng.standard_normal()) for config in configs]
    curve = learning_curve(
        lambda: AccuracyPredictor(space, families=("ridge",)),
        configs,
        values,
        (10, 80),
        np.random.default_rng(1),
    )
    assert curve[0] < curve[1] > 0.75
