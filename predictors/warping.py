"""Makes measured values look normally distributed, which is what models of them expect."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from sklearn.preprocessing import PowerTransformer

from .base import Floats

BEYOND = 3.0  # standard deviations above and below what was seen, in which values can be told apart
GRID = 600


class Warp:
    """The power transformation of Yeo and Johnson, fitted to values; mean 0 and deviation 1 afterwards.

    Accuracies crowd below their best and have a long tail of bad sub-nets: without it, the tail is what a model
    explains. Values that are all equal stay as they are.

    Source:
        Yeo, Johnson, "A new family of power transformations to improve normality or symmetry", 2000,
        doi:10.1093/biomet/87.4.954.

    Args:
        values: `[num_rows]`.
    """

    def __init__(self, values: Floats) -> None:
        self._centre, self._scale = float(np.mean(values)), float(np.std(values))
        self._flat = self._scale <= 1e-12 * max(abs(self._centre), 1e-300)
        if self._flat:
            self._scale = 1.0
            return
        self._power = PowerTransformer().fit(self._standard(values))
        seen = self._power.transform(self._standard(values))[:, 0]
        grid = np.linspace(seen.min() - BEYOND, seen.max() + BEYOND, GRID)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the transformation may be bounded on one side
            found = self._power.inverse_transform(grid[:, None])[:, 0]
        usable = np.isfinite(found)
        span = float(np.ptp(values))  # skewed values would else be foretold at any distance
        low, high = float(np.min(values)) - span, float(np.max(values)) + span
        self._grid = grid[usable]
        self._values = np.clip(found[usable] * self._scale + self._centre, low, high)

    def _standard(self, values: Floats) -> Floats:
        return np.asarray(((np.asarray(values, dtype=np.float64) - self._centre) / self._scale)[:, None])

    def __call__(self, values: Floats) -> Floats:
        """Warped values `[num_rows]`."""
        if self._flat:
            return np.asarray(values, dtype=np.float64) - self._centre
        return np.asarray(self._power.transform(self._standard(values))[:, 0])

    def slope(self, values: Floats) -> Floats:
        """How much a small change of each value is changed: `[num_rows]`."""
        step = 1e-4 * self._scale
        return np.asarray((self(np.asarray(values) + step) - self(np.asarray(values) - step)) / (2 * step))

    def back(self, warped: Floats) -> Floats:
        """Values of warped ones, of any shape; none is farther outside what was seen than that is wide."""
        if self._flat:
            return np.asarray(warped, dtype=np.float64) + self._centre
        return np.asarray(np.interp(warped, self._grid, self._values))


NODES, _weights = np.polynomial.hermite_e.hermegauss(9)
WEIGHTS = _weights / _weights.sum()  # of a standard normal distribution at NODES


def mean_of(function: Callable[[Floats], Floats], mean: Floats, std: Floats) -> Floats:
    """The mean `[num_rows]` of `function` of normally distributed numbers, by Gauss-Hermite quadrature."""
    return np.asarray(function(mean[:, None] + std[:, None] * NODES) @ WEIGHTS)
