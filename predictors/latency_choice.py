"""Which sub-nets are worth measuring next: those that say most about all others."""

from __future__ import annotations

import numpy as np

from .base import Floats


def most_telling(covariance: Floats, noise: float, count: int) -> list[int]:
    """Chooses rows one by one, each time the one whose measurement leaves the least variance in total.

    Measuring row i takes cov(i, j)^2 / (cov(i, i) + noise) off the variance of each row j. Unlike the most uncertain
    row, which is often an outlier, the chosen one has many others like it.

    Source:
        Cohn, "Neural network exploration using optimal experiment design", 1996, doi:10.1016/0893-6080(95)00137-9;
        for Gaussian processes Seo, Wallat, Graepel, Obermayer, "Gaussian process regression: active data selection
        and test point rejection", 2000.

    Args:
        covariance: of all candidates, given what was measured `[num_rows, num_rows]`.
        noise: variance of a measurement.
        count: rows to choose, at most all.

    Returns:
        Places of the chosen rows, the most telling first.
    """
    left = np.array(covariance, dtype=np.float64)
    chosen: list[int] = []
    for _ in range(min(count, len(left))):
        own = np.diag(left) + noise
        gains = (left**2).sum(axis=0) / np.maximum(own, 1e-300)
        gains[chosen] = -np.inf
        best = int(np.argmax(gains))
        chosen.append(best)
        left -= np.outer(left[:, best], left[best]) / own[best]
    return chosen
