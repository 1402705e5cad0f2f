"""A Gaussian process whose length scales belong to knobs instead of columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from .base import Floats

BOUNDS = (np.log(1e-5), np.log(1e4))
TUNED_NUMBERS = 1_000_000  # of the distances [rows, rows, knobs] on which hyperparameters are found
MOST_TUNED, MOST_ROWS = 200, 1_500
STEPS = 30  # of L-BFGS: what comes later changes predictions little
WIDTH, NOISE, NOISE_WIDTH = 1.5, -5.0, 2.0  # of the priors, in logarithms
JITTER = 1e-6


@dataclass(frozen=True)
class Kernel:
    """signal * exp(-sum_g w_g d_g), d_g the squared distance within the columns of group g; half of it where one-hot.

    For one-hot columns of an unordered knob d_g is 1 where two configs differ, else 0.

    Attributes:
        groups: the group of each column, from 0 `[num_features]`.
        logarithms: of the signal's variance, the weights of the groups, and the noise's variance `[num_groups + 2]`.
    """

    groups: tuple[int, ...]
    logarithms: Floats

    @property
    def signal(self) -> float:
        """Variance far from everything that is known."""
        return float(np.exp(self.logarithms[0]))

    @property
    def weights(self) -> Floats:
        """`[num_groups]`."""
        return np.asarray(np.exp(self.logarithms[1:-1]))

    @property
    def noise(self) -> float:
        """Variance of a measurement that was repeated."""
        return float(np.exp(self.logarithms[-1]))

    def __call__(self, a: Floats, b: Floats) -> Floats:
        """Covariances without noise `[num_a, num_b]`."""
        scale = np.sqrt(self.weights[np.array(self.groups)] / _doubled(self.groups))
        exponents = _squared(a * scale, b * scale)
        return np.asarray(self.signal * np.exp(np.negative(exponents, out=exponents), out=exponents))


def distances(groups: Sequence[int], x: Floats) -> Floats:
    """d_g between all rows `[num_rows, num_rows, num_groups]`."""
    parts, numbers = x / np.sqrt(_doubled(groups)), np.array(groups)
    found = np.empty((len(x), len(x), numbers.max() + 1))
    for group in range(found.shape[2]):
        columns = parts[:, numbers == group]
        found[:, :, group] = _squared(columns, columns)
    return found


def _doubled(groups: Sequence[int]) -> Floats:
    """2 for columns of groups of several, else 1."""
    counts = np.bincount(groups)
    return np.where(counts[np.array(groups)] > 1, 2.0, 1.0)


def _squared(a: Floats, b: Floats) -> Floats:
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * (a @ b.T)
    return np.asarray(np.maximum(squares, 0.0, out=squares))


def negative_log_posterior(
    apart: Floats, y: Floats, variance: Floats
) -> Callable[[Floats], tuple[float, Floats]]:
    """What hyperparameters are chosen by: with few rows the likelihood alone overfits.

    Args:
        apart: `distances` of the rows.
        y: their values `[num_rows]`.
        variance: of each one's noise, besides that of all `[num_rows]`.

    Returns:
        A function of the kernel's logarithms; its value, up to a constant, and gradient `[num_groups + 2]`.
    """
    count, number = len(y), apart.shape[2]
    flat = apart.reshape(count * count, number)
    centre, width = _prior(number)

    def evaluate(logarithms: Floats) -> tuple[float, Floats]:
        weights = np.exp(logarithms[1:-1])
        signal, noise = np.exp(logarithms[0]), np.exp(logarithms[-1])
        covariance = signal * np.exp(-(flat @ weights)).reshape(count, count)
        lower = cholesky(covariance + np.diag(noise + variance + JITTER), lower=True, check_finite=False)
        known = cho_solve((lower, True), np.column_stack([y, np.eye(count)]), check_finite=False)
        slack = np.outer(known[:, 0], known[:, 0]) - known[:, 1:]
        weighted = slack * covariance
        gradient = np.array(
            [weighted.sum(), *(-weights * (weighted.ravel() @ flat)), noise * float(np.trace(slack))]
        )
        off = (logarithms - centre) / width
        value = 0.5 * y @ known[:, 0] + np.log(np.diag(lower)).sum() + 0.5 * off @ off
        return float(value), -0.5 * gradient + off / width

    return evaluate


def _prior(number: int) -> tuple[Floats, Floats]:
    """Centre and width of the kernel's logarithms."""
    centre = np.array([0.0, *[-np.log(number)] * number, NOISE])
    return centre, np.array([WIDTH, *[WIDTH] * number, NOISE_WIDTH])


class GaussianProcess:
    """Squared-exponential on each knob; maximum-a-posteriori hyperparameters found on a part of many rows.

    A knob's weight has a log-normal prior around 1 / number of knobs, so that one prior serves 6 knobs and 100.
    Of more than `MOST_ROWS` rows those with the highest `y` and evenly chosen others are kept.

    Source:
        Rasmussen, Williams, "Gaussian Processes for Machine Learning", 2006, algorithm 2.1 and section 5.4. Priors
        that scale with the dimension after Hvarfner, Hellsten, Nardi, "Vanilla Bayesian Optimization Performs Great
        in High Dimensions", 2024, arXiv:2402.02229; unlike theirs, on inverse squared length scales.
    """

    kernel: Kernel

    def __init__(self, groups: NDArray[np.integer]) -> None:
        self._groups = tuple(int(group) for group in groups)

    def fit(self, x: Floats, y: Floats, noise: Floats | None = None) -> Self:
        """As `Model.fit`; `y` of mean 0 and deviation 1 or so."""
        variance = np.zeros(len(y)) if noise is None else noise
        number = max(self._groups) + 1
        part = _thinned(y, min(MOST_TUNED, int((TUNED_NUMBERS / number) ** 0.5)))
        found = minimize(
            negative_log_posterior(distances(self._groups, x[part]), y[part], variance[part]),
            _prior(number)[0],
            jac=True,
            method="L-BFGS-B",
            bounds=[BOUNDS] * (number + 2),
            options={"maxiter": STEPS},
        )
        return self._condition(Kernel(self._groups, found.x), x, y, variance)

    def again(self, x: Floats, y: Floats, noise: Floats | None = None) -> Self:
        """As `Model.again`: the hyperparameters stay."""
        variance = np.zeros(len(y)) if noise is None else noise
        return type(self)(np.array(self._groups))._condition(self.kernel, x, y, variance)

    def _condition(self, kernel: Kernel, x: Floats, y: Floats, variance: Floats) -> Self:
        kept = _thinned(y, MOST_ROWS)
        self.kernel, self._x = kernel, x[kept]
        covariance = kernel(self._x, self._x)
        covariance[np.diag_indices_from(covariance)] += kernel.noise + variance[kept] + JITTER
        self._lower = cholesky(covariance, lower=True, overwrite_a=True, check_finite=False)
        self._dual = cho_solve((self._lower, True), y[kept], check_finite=False)
        return self

    def anew(self, x: Floats, y: Floats, noise: Floats | None = None) -> Self:
        """As `Model.anew`."""
        return type(self)(np.array(self._groups)).fit(x, y, noise)

    def expect(self, x: Floats) -> Floats:
        """As `Model.expect`."""
        return np.asarray(self.kernel(x, self._x) @ self._dual)

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """As `Model.predict`."""
        covariance = self.kernel(self._x, x)  # [num_known, num_rows]
        mean = self._dual @ covariance
        known = solve_triangular(self._lower, covariance, lower=True, overwrite_b=True, check_finite=False)
        left = self.kernel.signal + self.kernel.noise - np.einsum("ij,ij->j", known, known)
        return mean, np.sqrt(np.maximum(left, 0.0))


def _thinned(y: Floats, most: int) -> NDArray[np.int64]:
    if len(y) <= most:
        return np.arange(len(y))
    order = np.argsort(-y, kind="stable")
    others = order[most // 2 :]
    picks = np.linspace(0, len(others) - 1, most - most // 2).astype(int)
    return np.sort(np.concatenate([order[: most // 2], others[picks]]))
