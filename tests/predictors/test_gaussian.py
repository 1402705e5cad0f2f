from __future__ import annotations

import numpy as np
from scipy.optimize import check_grad
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from predictors.gaussian import JITTER, GaussianProcess, Kernel, distances, negative_log_posterior

GROUPS = np.array([0, 0, 0, 1, 2])  # an unordered knob of three choices, and two ordered ones
RNG = np.random.default_rng(0)
X = np.column_stack([np.eye(3)[RNG.integers(0, 3, 40)], RNG.random((40, 2))])
NEW = np.column_stack([np.eye(3)[RNG.integers(0, 3, 9)], RNG.random((9, 2))])
Y = np.sin(X @ [1, 2, 3, 4, 5])
VARIANCE = 0.1 * RNG.random(40)


def test_it_is_the_gaussian_process_of_scikit_learn() -> None:
    found = GaussianProcess(GROUPS).fit(X, Y, VARIANCE)
    kernel = found.kernel
    lengths = 1 / np.sqrt(2 * kernel.weights[GROUPS] / [2, 2, 2, 1, 1])
    noise = (kernel.noise + VARIANCE + JITTER) / kernel.signal
    other = GaussianProcessRegressor(RBF(lengths), alpha=noise, optimizer=None).fit(X, Y)
    mean, std = found.predict(NEW)
    expected, spread = other.predict(NEW, return_std=True)
    np.testing.assert_allclose(mean, expected, atol=1e-8)
    np.testing.assert_allclose(found.expect(NEW), expected, atol=1e-8)
    np.testing.assert_allclose(std**2, kernel.signal * spread**2 + kernel.noise, atol=1e-8)


def test_hyperparameters_follow_the_gradient_to_a_better_posterior() -> None:
    evaluate = negative_log_posterior(distances(GROUPS.tolist(), X), Y, VARIANCE)
    start = np.array([0.3, -1.0, 0.5, 1.0, -3.0])
    assert check_grad(lambda at: evaluate(at)[0], lambda at: evaluate(at)[1], start) < 1e-4
    found = GaussianProcess(GROUPS).fit(X, Y, VARIANCE).kernel.logarithms
    value, gradient = evaluate(found)
    assert value < evaluate(start)[0]
    assert np.abs(gradient).max() < 0.5


def test_choices_of_an_unordered_knob_are_all_equally_far_apart() -> None:
    kernel = Kernel((0, 0, 0), np.array([0.0, np.log(0.7), -5.0]))
    np.testing.assert_allclose(kernel(np.eye(3), np.eye(3)), np.where(np.eye(3), 1, np.exp(-0.7)))
