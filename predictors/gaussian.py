"""A Gaussian process whose length scales belong to knobs instead of columns."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import (
    ConstantKernel,
    Hyperparameter,
    Kernel,
    NormalizedKernelMixin,
    StationaryKernelMixin,
    WhiteKernel,
)

from .base import Floats

BOUNDS = (1e-5, 1e4)
TUNED_NUMBERS = 1_000_000  # of the distances [rows, rows, knobs] on which hyperparameters are found
MOST_TUNED, MOST_ROWS = 200, 1_500
STEPS = 30  # of L-BFGS: what comes later changes predictions little
WIDTH, NOISE, NOISE_WIDTH = 1.5, -5.0, 2.0  # of the priors, in logarithms


class GroupedRBF(StationaryKernelMixin, NormalizedKernelMixin, Kernel):  # type: ignore[misc]
    """exp(-sum_g w_g d_g), d_g the squared distance within the columns of group g; half of it where one-hot.

    For one-hot columns of an unordered knob d_g is 1 where two configs differ, else 0.
    """

    def __init__(self, groups: tuple[int, ...], weights: Any) -> None:
        self.groups, self.weights = groups, weights

    @property
    def hyperparameter_weights(self) -> Hyperparameter:
        """How scikit-learn finds out what is to be tuned."""
        return Hyperparameter("weights", "numeric", BOUNDS, len(np.atleast_1d(self.weights)))

    def __call__(self, X: Floats, Y: Floats | None = None, eval_gradient: bool = False) -> Any:
        """Covariances `[num_x, num_y]`, and their gradient `[num_x, num_x, num_groups]` if asked for."""
        weights = np.atleast_1d(self.weights)
        groups = np.array(self.groups)
        if not eval_gradient:
            scale = np.sqrt(weights[groups] / _doubled(self.groups))
            return np.exp(-_squared(X * scale, (X if Y is None else Y) * scale))
        distances = self.distances(X)
        covariances = np.exp(-(distances @ weights))
        return covariances, -distances * weights * covariances[:, :, None]

    def distances(self, x: Floats) -> Floats:
        """`[num_x, num_x, num_groups]`."""
        parts = x / np.sqrt(_doubled(self.groups))
        found = np.empty((len(x), len(x), len(np.atleast_1d(self.weights))))
        groups = np.array(self.groups)
        for group in range(found.shape[2]):
            columns = parts[:, groups == group]
            found[:, :, group] = _squared(columns, columns)
        return found


def _doubled(groups: Sequence[int]) -> Floats:
    """2 for columns of groups of several, else 1."""
    counts = np.bincount(groups)
    return np.where(counts[np.array(groups)] > 1, 2.0, 1.0)


def _squared(a: Floats, b: Floats) -> Floats:
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * (a @ b.T)
    return np.asarray(np.maximum(squares, 0.0))


class _Map(GaussianProcessRegressor):  # type: ignore[misc]
    """Hyperparameters by their posterior instead of their likelihood: with few rows the latter overfits."""

    def log_marginal_likelihood(
        self, theta: Any = None, eval_gradient: bool = False, clone_kernel: bool = True
    ) -> Any:
        found = super().log_marginal_likelihood(theta, eval_gradient, clone_kernel)
        if theta is None:
            return found
        off, width = theta - self.centre, self.width
        if not eval_gradient:
            return found - 0.5 * ((off / width) ** 2).sum()
        return found[0] - 0.5 * ((off / width) ** 2).sum(), found[1] - off / width**2


class GaussianProcess:
    """Squared-exponential on each knob; maximum-a-posteriori hyperparameters found on a part of many rows.

    A knob's weight has a log-normal prior around 1 / number of knobs, so that one prior serves 6 knobs and 100.
    Of more than `MOST_ROWS` rows those with the highest `y` and evenly chosen others are kept.

    Source:
        Rasmussen, Williams, "Gaussian Processes for Machine Learning", 2006. Priors that scale with the dimension
        after Hvarfner, Hellsten, Nardi, "Vanilla Bayesian Optimization Performs Great in High Dimensions", 2024,
        arXiv:2402.02229; unlike theirs, on inverse squared length scales.
    """

    def __init__(self, groups: NDArray[np.integer]) -> None:
        self._groups = tuple(int(group) for group in groups)

    def fit(self, x: Floats, y: Floats, noise: Floats | None = None) -> Self:
        """As `Model.fit`; `y` of mean 0 and deviation 1 or so."""
        noise = np.zeros(len(y)) if noise is None else noise
        number = max(self._groups) + 1
        part = _thinned(y, min(MOST_TUNED, int((TUNED_NUMBERS / number) ** 0.5)))
        kernel = ConstantKernel(1.0, BOUNDS) * GroupedRBF(self._groups, np.full(number, 1 / number))
        kernel += WhiteKernel(float(np.exp(NOISE)), BOUNDS)
        self._model = self._fitted(kernel, _minimize, x[part], y[part], noise[part])
        if len(part) < len(y):
            self._model = self.again(x, y, noise)._model
        return self

    def again(self, x: Floats, y: Floats, noise: Floats | None = None) -> Self:
        """As `Model.again`: the hyperparameters stay."""
        noise = np.zeros(len(y)) if noise is None else noise
        kept = _thinned(y, MOST_ROWS)
        other = type(self)(np.array(self._groups))
        other._model = self._fitted(self._model.kernel_, None, x[kept], y[kept], noise[kept])
        return other

    def _fitted(self, kernel: Kernel, optimizer: Any, x: Floats, y: Floats, noise: Floats) -> _Map:
        model = _Map(kernel, alpha=noise + 1e-6, optimizer=optimizer)
        number = len(kernel.theta) - 2
        model.centre = np.array([0.0, *[np.log(1 / number)] * number, NOISE])
        model.width = np.array([WIDTH, *[WIDTH] * number, NOISE_WIDTH])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, y)
        return model

    def anew(self, x: Floats, y: Floats, noise: Floats | None = None) -> Self:
        """As `Model.anew`."""
        return type(self)(np.array(self._groups)).fit(x, y, noise)

    def expect(self, x: Floats) -> Floats:
        """As `Model.expect`."""
        return np.asarray(self._model.predict(x))

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """As `Model.predict`."""
        mean, std = self._model.predict(x, return_std=True)
        return mean, std


def _thinned(y: Floats, most: int) -> NDArray[np.int64]:
    if len(y) <= most:
        return np.arange(len(y))
    order = np.argsort(-y, kind="stable")
    others = order[most // 2 :]
    picks = np.linspace(0, len(others) - 1, most - most // 2).astype(int)
    return np.sort(np.concatenate([order[: most // 2], others[picks]]))


def _minimize(objective: Any, start: Floats, bounds: Any) -> tuple[Floats, float]:
    from scipy.optimize import minimize

    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": STEPS})
    return found.x, found.fun
