"""Intervals that hold a stated share of new measurements, whatever the model behind them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from search_spaces import InvalidInput

from .base import Floats

CHUNK_NUMBERS = 4_000_000


def check_coverage(coverage: float) -> float:
    """The share itself; `InvalidInput` unless it lies between 0 and 1."""
    if isinstance(coverage, bool) or not 0 < coverage < 1:
        raise InvalidInput(f"the coverage of an interval must lie between 0 and 1, got {coverage!r}")
    return float(coverage)


def split_conformal(scores: Floats, coverage: float) -> float:
    """How far from a prediction the interval must reach, from `[num_held_out]` absolute errors.

    Held-out and new rows being exchangeable, an interval of plus and minus this much holds a new measurement with
    a probability of at least `coverage`; infinite where there are too few rows to say so.

    Source:
        Lei, G'Sell, Rinaldo, Tibshirani, Wasserman, "Distribution-Free Predictive Inference for Regression", 2018,
        doi:10.1080/01621459.2017.1307116.
    """
    rank = math.ceil(check_coverage(coverage) * (len(scores) + 1))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def cv_plus(
    means: Floats,
    scales: Floats,
    fold_of: NDArray[np.integer],
    scores: Floats,
    coverage: float,
) -> tuple[Floats, Floats]:
    """Intervals from models that each have not seen one fold: no row is spent on calibration alone.

    Each learnt row contributes the prediction of the model that has not seen it, minus and plus its score in that
    model's scale at the new place; the interval reaches from a low quantile of the former to a high one of the
    latter. Exchangeable rows are covered with a probability of at least 1 - 2 (1 - coverage) (and a little less for
    few large folds), and in practice close to `coverage`.

    Source:
        Barber, Candes, Ramdas, Tibshirani, "Predictive inference with the jackknife+", 2021,
        doi:10.1214/20-AOS1965, theorem 4. Unlike theirs, scores are in units of the predicted spread, after
        Papadopoulos, Gammerman, Vovk, "Normalized nonconformity measures", 2008: wide where the model is unsure.

    Args:
        means, scales: of the fold models at new rows `[num_folds, num_new]`.
        fold_of: the fold of each learnt row `[num_rows]`.
        scores: |error| / scale of each learnt row, from the model that has not seen it `[num_rows]`.
        coverage: the share aimed at.

    Returns:
        Low and high `[num_new]`; infinite where there are too few rows.
    """
    count = len(scores)
    rank = math.ceil(check_coverage(coverage) * (count + 1))
    low, high = np.full(means.shape[1], -np.inf), np.full(means.shape[1], np.inf)
    if rank > count:
        return low, high
    for start in range(0, means.shape[1], step := max(1, CHUNK_NUMBERS // count)):
        part = slice(start, start + step)
        middle, reach = means[fold_of, part], scores[:, None] * scales[fold_of, part]  # [num_rows, num_part]
        low[part] = np.partition(middle - reach, count - rank, axis=0)[count - rank]
        high[part] = np.partition(middle + reach, rank - 1, axis=0)[rank - 1]
    return low, high
