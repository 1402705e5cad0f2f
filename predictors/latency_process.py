"""A Gaussian process over a sum of covariances, whose amounts are learnt; its errors on left-out rows come for free."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from .base import Floats
from .latency_parts import LEVEL, Parts, Places

MOST_TUNED = 400  # rows on which amounts are found
WIDTH = 2.0  # of the prior of each amount, in logarithms
NOISE = 0.01  # the usual variance of what no part explains
STEPS = 40  # of L-BFGS
BEYOND = 8.0  # logarithms from its prior that an amount may go
JITTER = 1e-8


class LatencyProcess:
    """Block table and residual in one: a Gaussian process over `Parts`.

    The amount of each part, and of noise, is the most probable one after seeing the rows, with a log-normal prior
    around that of `Parts.amounts`: with few rows only what layers have in common is believed, with many rows every
    layer has its own milliseconds.

    Source:
        Rasmussen, Williams, "Gaussian Processes for Machine Learning", 2006: equations 2.23, 2.24, 5.9, 5.12.
        Sums of covariances after Duvenaud, Nickisch, Rasmussen, "Additive Gaussian Processes", 2011,
        arXiv:1112.4394; unlike theirs, each order is a given part, and alike knobs share their effects.

    Attributes:
        amounts: of the parts and, last, of noise, in the variance of the values.
    """

    def __init__(self, parts: Parts, amounts: Floats | None = None) -> None:
        self.parts = parts
        self._tuned = amounts
        self.amounts = np.append(parts.amounts, NOISE) if amounts is None else amounts

    def fit(self, x: Any, y: Floats, noise: Floats | None = None) -> Self:
        """Learns from canonical rows `[num_rows, num_knobs]` and values `[num_rows]` with known variances `noise`."""
        self.middle, spread = float(np.mean(y)), float(np.std(y))
        self.scale = spread or max(abs(self.middle), 1.0) * 1e-6
        self._known = self.parts(x)
        self._noise = np.zeros(len(y)) if noise is None else noise / self.scale**2
        values = (y - self.middle) / self.scale
        if self._tuned is None:
            self.amounts = self._most_probable(values)
        covariance = self.parts.mixed(self.amounts[:-1], self._known, self._known)
        covariance[np.diag_indices(len(y))] += self.amounts[-1] + self._noise + JITTER
        self._factor = cho_factor(covariance, lower=True, overwrite_a=True)
        self._weights = cho_solve(self._factor, values)
        self._values = values
        return self

    def _most_probable(self, values: Floats) -> Floats:
        part = np.linspace(0, len(values) - 1, min(len(values), MOST_TUNED)).astype(int)
        seen = Places({name: f[part] for name, f in self._known.linear.items()}, self._known.places[part])
        grams = np.stack(list(self.parts.grams(seen, seen)))
        y, noise = values[part], self._noise[part]
        prior = np.log(np.append(self.parts.amounts, NOISE))
        diagonal = np.diag_indices(len(part))

        def surprise(logs: Floats) -> tuple[float, Floats]:
            amounts = np.exp(logs)
            covariance = np.tensordot(amounts[:-1], grams, 1) + LEVEL
            covariance[diagonal] += amounts[-1] + noise + JITTER
            factor = cho_factor(covariance, lower=True)
            weights = cho_solve(factor, y)
            inner = cho_solve(factor, np.eye(len(y))) - np.outer(weights, weights)
            off = (logs - prior) / WIDTH
            value = 0.5 * y @ weights + np.log(np.diag(factor[0])).sum() + 0.5 * off @ off
            slopes = 0.5 * np.append(np.tensordot(grams, inner, 2), np.trace(inner)) * amounts
            return float(value), slopes + off / WIDTH

        bounds = [(log - BEYOND, log + BEYOND) for log in prior]
        found = minimize(
            surprise, prior, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": STEPS}
        )
        return np.asarray(np.exp(found.x))

    def again(self, x: Any, y: Floats, noise: Floats | None = None) -> Self:
        """Another one for other rows, with this one's amounts."""
        return type(self)(self.parts, self.amounts).fit(x, y, noise)

    def anew(self, x: Any, y: Floats, noise: Floats | None = None) -> Self:
        """Another one for other rows, which owes nothing to this one."""
        return type(self)(self.parts).fit(x, y, noise)

    def expect(self, x: Any) -> Floats:
        """The mean `[num_rows]`."""
        return self._mean(self.parts.mixed(self.amounts[:-1], self.parts(x), self._known))

    def _mean(self, covariance: Floats) -> Floats:
        return np.asarray(covariance @ self._weights * self.scale + self.middle)

    def predict(self, x: Any) -> tuple[Floats, Floats]:
        """Mean and standard deviation of a new measurement, both `[num_rows]`."""
        new = self.parts(x)
        covariance = self.parts.mixed(self.amounts[:-1], new, self._known)
        explained = (covariance * cho_solve(self._factor, covariance.T).T).sum(axis=1)
        left = self.parts.variances(self.amounts[:-1], new) - explained
        std = np.sqrt(np.maximum(left, 0.0) + self.amounts[-1] + JITTER)
        return self._mean(covariance), std * self.scale

    def left_out(self) -> Floats:
        """What is expected of each learnt row from the others alone, at these amounts `[num_rows]`."""
        inverse = np.diag(cho_solve(self._factor, np.eye(len(self._values))))
        return np.asarray((self._values - self._weights / inverse) * self.scale + self.middle)

    def uncertainty(self, x: Any) -> tuple[Floats, float]:
        """Covariances `[num_rows, num_rows]` that the learnt rows leave, and the variance of a measurement."""
        new = self.parts(x)
        covariance = self.parts.mixed(self.amounts[:-1], new, self._known)
        whole = self.parts.mixed(self.amounts[:-1], new, new)
        left = np.asarray(whole - covariance @ cho_solve(self._factor, covariance.T))
        return left, float(self.amounts[-1])
