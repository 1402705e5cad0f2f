from __future__ import annotations

import numpy as np
import pytest

from predictors import cv_plus, split_conformal
from search_spaces import InvalidInput


def test_split_conformal_covers_what_is_as_likely_as_what_was_held_out() -> None:
    rng, inside = np.random.default_rng(0), []
    for _ in range(2_000):
        scores = np.abs(rng.standard_t(3, 21))
        inside.append(scores[0] <= split_conformal(scores[1:], 0.9))
    assert abs(np.mean(inside) - 19 / 21) < 0.02  # ceil(0.9 * 21) = 19 of 21 places


def test_too_few_scores_give_no_bound() -> None:
    assert split_conformal(np.ones(8), 0.9) == np.inf
    assert split_conformal(np.ones(9), 0.9) == 1.0
    with pytest.raises(InvalidInput, match=r"between 0 and 1, got 1.5"):
        split_conformal(np.ones(8), 1.5)


def test_cv_plus_with_one_model_is_split_conformal() -> None:
    scores = np.random.default_rng(0).exponential(size=30)
    low, high = cv_plus(np.array([[5.0, 7.0]]), np.array([[1.0, 2.0]]), np.zeros(30, int), scores, 0.9)
    reach = split_conformal(scores, 0.9)
    np.testing.assert_allclose(high, [5 + reach, 7 + 2 * reach])
    np.testing.assert_allclose(low, [5 - reach, 7 - 2 * reach])


def test_cv_plus_covers_new_rows_of_a_model_that_learns_a_mean() -> None:
    rng, inside = np.random.default_rng(1), []
    fold_of = np.arange(30) % 5
    for _ in range(1_500):
        y = rng.exponential(size=31)
        known, new = y[:30], y[30]
        means = np.array([known[fold_of != fold].mean() for fold in range(5)])
        scores = np.abs(known - means[fold_of])
        low, high = cv_plus(means[:, None], np.ones((5, 1)), fold_of, scores, 0.8)
        inside.append(low[0] <= new <= high[0])
    assert 0.78 < np.mean(inside) < 0.9
