"""How good a latency predictor is on nets that it has not seen, and what more measurements would bring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from search_spaces import InvalidInput

from .base import Config, Floats, Predictor
from .quality import coverage, kendall_tau, share_within

SHARES = (0.4, 0.55, 0.7, 0.85)  # of the rows, from which the learning curve is taken
REPEATS, RESAMPLES = 6, 200
FOLDS = 5
POWERS = np.linspace(0.25, 2.0, 8)
WORTH = 0.1  # another doubling of all measurements is worth it if the error falls by this share
MOST_DOUBLINGS = 2  # nobody can see farther from a handful of rows
LEAST_OUTLOOK = 12
Make = Callable[[], Predictor]


@dataclass(frozen=True)
class Quality:
    """A predictor on nets left out of it, by cross-validation.

    Attributes:
        rows: measured nets.
        tau: Kendall's tau between predicted and measured.
        within_10_percent: share of nets predicted to within 10 % of what was measured.
        coverage: share of nets inside their intervals.
        error_percent: mean of |predicted - measured|, in percent of the mean measured.
    """

    rows: int
    tau: float
    within_10_percent: float
    coverage: float
    error_percent: float


@dataclass(frozen=True)
class Outlook:
    """What more measurements would bring, with 80 % intervals.

    Attributes:
        sizes: numbers of rows learnt from.
        error_percent: of nets not learnt from, at each size, in percent of the mean.
        now_percent: expected with all rows.
        doubled_percent: expected with twice as many: low, middle, high.
        more: so many further measurements are worth taking, until doubling brings less than 10 %: low, middle, high.
        most: `more` is not looked for beyond this.
    """

    sizes: tuple[int, ...]
    error_percent: tuple[float, ...]
    now_percent: float
    doubled_percent: tuple[float, float, float]
    more: tuple[int, int, int]
    most: int

    def __str__(self) -> str:
        """One line for people."""
        low, middle, high = self.doubled_percent
        least, about, at_most = self.more
        beyond = " or more" if at_most >= self.most else ""
        return (
            f"with twice as many measurements the error would fall from {self.now_percent:.1f} % to about "
            f"{middle:.1f} % ({low:.1f} to {high:.1f}); about {about} more are worth taking "
            f"({least} to {at_most}{beyond})"
        )


def cross_validated(make: Make, configs: Sequence[Config], values: Sequence[float], seed: int = 0) -> Quality:
    """The quality of what `make` makes, each fold predicted, with intervals, from the others.

    Raises:
        InvalidInput: for too few rows to learn from four fifths of them.
    """
    measured = np.asarray(values, dtype=np.float64)
    fold_of = np.random.default_rng((seed, len(measured))).permutation(np.arange(len(measured)) % FOLDS)
    found, low, high = (np.empty(len(measured)) for _ in range(3))
    for fold in range(FOLDS):
        rest, held = np.flatnonzero(fold_of != fold).tolist(), np.flatnonzero(fold_of == fold).tolist()
        predictor = make().fit([configs[i] for i in rest], measured[rest].tolist())
        new = [configs[i] for i in held]
        found[held] = predictor.predict(new)
        low[held], high[held] = predictor.predict_interval(new)
    return Quality(
        len(measured),
        kendall_tau(found, measured),
        share_within(found, measured),
        coverage(low, high, measured),
        _error_percent(found, measured),
    )


def outlook(make: Make, configs: Sequence[Config], values: Sequence[float], seed: int = 0) -> Outlook:
    """Extrapolates the learning curve: errors after learning from parts of the rows, and a power law through them.

    The law is error = floor + b * rows^-c; how sure it is comes from drawing the parts anew, so it is about these rows
    and not about other sub-nets.

    Source:
        Viering, Loog, "The Shape of Learning Curves: a Review", 2021, arXiv:2103.10948: a power law with a floor.

    Args:
        make: a predictor that knows nothing yet.
        configs, values: the measurements.
        seed: of the parts.

    Raises:
        InvalidInput: for fewer than 12 rows: no curve can be seen in them.
    """
    count = len(configs)
    if count < LEAST_OUTLOOK:
        raise InvalidInput(
            f"what more measurements would bring can be told from {LEAST_OUTLOOK} on, got {count}; measure some more"
        )
    measured, rng = np.asarray(values, dtype=np.float64), np.random.default_rng((seed, count, 1))
    sizes = sorted({max(5, round(share * count)) for share in SHARES})
    errors = np.empty((len(sizes), REPEATS))
    for repeat in range(REPEATS):
        order = rng.permutation(count).tolist()
        for place, size in enumerate(sizes):
            seen, new = order[:size], order[size:]
            predictor = make().fit([configs[i] for i in seen], measured[seen].tolist())
            found = predictor.predict([configs[i] for i in new])
            errors[place, repeat] = 100 * np.abs(found - measured[new]).mean() / measured.mean()
    return _extrapolated(np.array(sizes), errors, count, rng)


def _extrapolated(sizes: np.ndarray, errors: Floats, count: int, rng: np.random.Generator) -> Outlook:
    most = count * (2**MOST_DOUBLINGS - 1)
    totals = np.unique(np.geomspace(count, count + most, 60).astype(int))
    doubled, more = [], []
    for _ in range(RESAMPLES):
        drawn = errors[:, rng.integers(0, errors.shape[1], errors.shape[1])].mean(axis=1)
        law = power_law(sizes, drawn)
        doubled.append(float(law(2 * count)))
        enough = totals[law(2 * totals) >= (1 - WORTH) * law(totals)]
        more.append(int(enough[0]) - count if len(enough) else most)
    mean = errors.mean(axis=1)
    low, middle, high = np.quantile(doubled, (0.1, 0.5, 0.9)).tolist()
    least, about, at_most = np.quantile(more, (0.1, 0.5, 0.9)).round().astype(int).tolist()
    return Outlook(
        tuple(sizes.tolist()),
        tuple(mean.tolist()),
        float(power_law(sizes, mean)(count)),
        (low, middle, high),
        (least, about, at_most),
        most,
    )


def power_law(sizes: np.ndarray, errors: Floats) -> Callable[[float | np.ndarray], Floats]:
    """The best floor + b * size^-c with nothing negative; a function of sizes."""
    best: tuple[float, Floats, float] | None = None
    for power in POWERS:
        basis = np.column_stack([np.ones(len(sizes)), sizes.astype(np.float64) ** -power])
        factors, miss = nnls(basis, errors)
        if best is None or miss < best[0]:
            best = miss, factors, float(power)
    assert best is not None
    _, (floor, factor), power = best
    return lambda size: np.asarray(floor + factor * np.asarray(size, dtype=np.float64) ** -power)


def _error_percent(found: Floats, measured: Floats) -> float:
    return float(100 * np.abs(found - measured).mean() / measured.mean())
