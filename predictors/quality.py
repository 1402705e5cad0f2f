"""How good a predictor is: the order it gives, its errors, its intervals, and how these grow with data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from .base import Config, Floats, Predictor

MOST_PAIRED = 1_000  # rows near the front that are compared with all others
WITHIN = 0.1


def kendall_tau(predicted: Floats, measured: Floats) -> float:
    """Kendall's tau-b; 0 where one of them is constant. (1 + tau) / 2 of all pairs are in the right order."""
    found = float(kendalltau(predicted, measured).statistic)
    return found if found == found else 0.0


def tau_near(predicted: Floats, measured: Floats, near: NDArray[np.bool_]) -> float:
    """Kendall's tau over the pairs of which at least one row is marked, the others being of no consequence.

    Args:
        predicted, measured: `[num_rows]`.
        near: `[num_rows]`, such as the rows near a front.

    Returns:
        (right pairs - wrong pairs) / pairs whose measurements differ; 0 if there are none. A pair predicted equal
        is neither right nor wrong.
    """
    marked = np.flatnonzero(near)[:MOST_PAIRED]
    weight = np.where(near, 0.5, 1.0)  # pairs of two marked rows come twice
    right, total = 0.0, 0.0
    for row in marked:
        known = np.sign(measured - measured[row])
        right += float((np.sign(predicted - predicted[row]) * known) @ weight)
        total += float(np.abs(known) @ weight)
    return right / total if total else 0.0


def share_within(predicted: Floats, measured: Floats, relative: float = WITHIN) -> float:
    """The share of predictions that are off by at most `relative` of what was measured."""
    return float(np.mean(np.abs(predicted - measured) <= relative * np.abs(measured)))


def coverage(low: Floats, high: Floats, measured: Floats) -> float:
    """The share of measurements inside their intervals."""
    return float(np.mean((low <= measured) & (measured <= high)))


def learning_curve(
    make: Callable[[], Predictor],
    configs: Sequence[Config],
    values: Sequence[float],
    sizes: Sequence[int],
    rng: np.random.Generator,
) -> list[float]:
    """Kendall's tau on what is left over after learning from each of `sizes` rows; one order of rows for all."""
    order, known = rng.permutation(len(configs)), np.asarray(values, dtype=np.float64)
    rest = order[max(sizes) :]
    held = [configs[i] for i in rest]
    found = []
    for size in sizes:
        predictor = make().fit([configs[i] for i in order[:size]], known[order[:size]].tolist())
        found.append(kendall_tau(predictor.predict(held), known[rest]))
    return found
