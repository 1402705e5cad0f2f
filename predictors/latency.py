"""A predictor of latency on one device: a block table and a learned residual, from some tens of measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from search_spaces import CostTable, InvalidInput, SearchSpace, SubnetConfig

from .accuracy import MEDIAN, SCALES, Fold, cross_validate
from .base import Config, Floats, Model
from .intervals import check_coverage, cv_plus
from .latency_choice import most_telling
from .latency_layers import LayerCosts
from .latency_parts import Parts
from .latency_process import NOISE, LatencyProcess

FOLDS = 5
LEAST_ROWS = 5
MOST_CANDIDATES = 600  # among which the next measurements are chosen


class Learner(Model, Protocol):
    """What a way learns with: a model of rows that can also be asked what it did not know."""

    def left_out(self) -> Floats:
        """What is expected of each learnt row from the others alone `[num_rows]`."""

    def uncertainty(self, x: Any) -> tuple[Floats, float]:
        """Covariances `[num_rows, num_rows]` that the learnt rows leave, and the variance of a measurement."""


@dataclass(frozen=True)
class Way:
    """One way to learn: what begins afresh, and whether milliseconds or their logarithms add up."""

    name: str
    make: Callable[[], Learner]
    logarithms: bool = False

    def taken(self, values: Floats) -> Floats:
        """Milliseconds on the scale on which they add up."""
        return np.log(values) if self.logarithms else values

    def back(self, taken: Floats) -> Floats:
        """Milliseconds again; none below zero."""
        return np.exp(np.minimum(taken, 700.0)) if self.logarithms else np.maximum(taken, 0.0)


@dataclass(frozen=True)
class Learnt:
    """What was learnt, and how the ways did.

    Attributes:
        way: the one taken.
        process: what was fitted to all rows.
        folds: its cross-validation, on the way's scale.
        errors_ms: mean error of each way on rows left out one by one.
        spread: what its standard deviations are multiplied with to be as large as its errors are.
    """

    way: Way
    process: Learner
    folds: Fold
    errors_ms: dict[str, float]
    spread: float


class LatencyPredictor:
    """Learns from five to some thousand measurements how long sub-nets take on one device.

    A block table at several depths with a residual (see `Parts`) is fitted once to milliseconds and once to their
    logarithms; what errs clearly less on rows left out is taken, the former where there is no telling. Errors are in
    milliseconds.

    Args:
        space: whose configs are predicted.
        costs: its cost table, or a function that says the costs of layers; without either, knobs are all it sees.
        coverage: share of measurements that intervals should hold.
        seed: of the folds.

    Attributes:
        learnt: what `fit` found out.

    Raises:
        InvalidInput: for a coverage outside 0 to 1, or costs that are neither.
    """

    learnt: Learnt

    def __init__(
        self,
        space: SearchSpace,
        costs: CostTable | LayerCosts | None = None,
        *,
        coverage: float = 0.9,
        seed: int = 0,
    ) -> None:
        self.space, self._seed, self._coverage = space, seed, check_coverage(coverage)
        self._parts = Parts(space, costs)
        self._seen: NDArray[np.int64] | None = None

    def _ways(self) -> list[Way]:
        """How it may learn, the preferred first."""
        return [Way("sums", self._plain), Way("products", self._plain, logarithms=True)]

    def _plain(self) -> Learner:
        return LatencyProcess(self._parts)

    def fit(
        self, configs: Sequence[Config], values: Sequence[float], noise: Sequence[float] | None = None
    ) -> Self:
        """Learns from configs `[num_rows]` and their milliseconds.

        Args:
            configs: measured sub-nets; one that was measured twice may stand twice.
            values: milliseconds.
            noise: standard errors of the values, where known.

        Raises:
            InvalidInput: for fewer than 5 rows, values that are not positive numbers, or not one for each config.
        """
        ms = np.asarray(values, dtype=np.float64)
        if ms.shape != (len(configs),) or len(ms) < LEAST_ROWS:
            raise InvalidInput(
                f"a latency predictor learns from at least {LEAST_ROWS} configs and one value of each, got "
                f"{len(configs)} configs and {ms.size} values"
            )
        if not (np.isfinite(ms) & (ms > 0)).all():
            bad = ms[~(np.isfinite(ms) & (ms > 0))][0]
            raise InvalidInput(
                f"latencies are positive numbers of milliseconds, got {bad}; leave out what failed"
            )
        errors = None if noise is None else np.asarray(noise, dtype=np.float64)
        return self.fit_rows(self.space.encode(configs), ms, errors)

    def fit_rows(self, rows: NDArray[np.int64], ms: Floats, noise: Floats | None = None) -> Self:
        """As `fit`, from canonical rows `[num_rows, num_knobs]`."""
        tried: dict[str, tuple[float, Way, Learner]] = {}
        for way in self._ways():
            variance = _variance(way, ms, noise)
            process = way.make().fit(rows.astype(np.float64), way.taken(ms), variance)
            error = float(np.mean(np.abs(way.back(process.left_out()) - ms)))
            tried[way.name] = error, way, process
        taken, clearly = next(iter(tried.values())), 1 - len(ms) ** -0.5
        for candidate in tried.values():
            if candidate[0] < clearly * taken[0]:
                taken = candidate
        error, way, process = taken
        y, variance = way.taken(ms), _variance(way, ms, noise)
        folds = min(FOLDS, len(ms))
        fold_of = np.random.default_rng((self._seed, len(ms))).permutation(np.arange(len(ms)) % folds)
        found = cross_validate(process, rows.astype(np.float64), y, variance, fold_of)
        self._scores = np.abs(y - found.mean) / found.std
        spread = float(np.clip(np.median(self._scores) / MEDIAN, *SCALES))
        self.learnt = Learnt(way, process, found, {name: one[0] for name, one in tried.items()}, spread)
        self._seen = rows
        return self

    def predict(self, configs: Sequence[Config]) -> Floats:
        """Milliseconds expected of each config `[num_configs]`."""
        return self.predict_rows(self.space.encode(configs))

    def predict_rows(self, rows: NDArray[np.int64]) -> Floats:
        """As `predict`, of canonical rows `[num_configs, num_knobs]`."""
        way, process = self.learnt.way, self.learnt.process
        return _in_chunks(lambda part: way.back(process.expect(part)), rows.astype(np.float64))

    def predict_interval(self, configs: Sequence[Config]) -> tuple[Floats, Floats]:
        """Low and high `[num_configs]`, see `cv_plus`; 0 and infinite where too few rows were seen to say."""
        rows, learnt = self.space.encode(configs).astype(np.float64), self.learnt
        each = [model.predict(rows) for model in learnt.folds.models]
        means, stds = np.stack([mean for mean, _ in each]), np.stack([std for _, std in each])
        low, high = cv_plus(means, stds, learnt.folds.fold_of, self._scores, self._coverage)
        unknown = ~np.isfinite(high)
        return (
            np.where(unknown, 0.0, learnt.way.back(np.where(unknown, 0.0, low))),
            np.where(unknown, np.inf, learnt.way.back(np.where(unknown, 0.0, high))),
        )

    def spread_rows(self, rows: NDArray[np.int64]) -> Floats:
        """How far a new measurement is usually off, in milliseconds `[num_configs]`."""
        learnt = self.learnt
        mean, std = learnt.process.predict(rows.astype(np.float64))
        std = std * learnt.spread
        return learnt.way.back(mean) * np.expm1(np.minimum(std, 50.0)) if learnt.way.logarithms else std

    def suggest(self, configs: Sequence[Config], count: int) -> list[SubnetConfig]:
        """The configs of these whose measurement would say most about all of them, the most telling first.

        Works before `fit`, too: then the first measurements are planned. Measured configs are left out. Of more than
        some hundred configs evenly chosen ones are looked at.

        Raises:
            InvalidInput: for a count below 1, or if no config is new.
        """
        if count < 1:
            raise InvalidInput(f"at least 1 config must be asked for, got {count}")
        rows = np.unique(self.space.encode(configs), axis=0)
        if self._seen is not None:
            known = {row.tobytes() for row in self._seen}
            rows = rows[[row.tobytes() not in known for row in rows]]
        if not len(rows):
            raise InvalidInput("there is nothing left to measure: all configs are known; give others")
        most = max(MOST_CANDIDATES, 2 * count)
        rows = np.random.default_rng(self._seed).permutation(rows)[:most]
        if self._seen is None:
            places = self._parts(rows)
            covariance, noise = self._parts.mixed(self._parts.amounts, places, places), NOISE
        else:
            covariance, noise = self.learnt.process.uncertainty(rows)
        return self.space.decode(rows[most_telling(covariance, noise, count)])

    @property
    def verdict(self) -> str:
        """One line for people: how it learnt, and how far off it is on rows that it had not seen."""
        learnt = self.learnt
        error = learnt.errors_ms[learnt.way.name]
        return f"{learnt.way.name}: off by {error:.3g} ms on average where a measurement is left out"


def _variance(way: Way, ms: Floats, noise: Floats | None) -> Floats | None:
    if noise is None:
        return None
    return np.asarray((noise / ms if way.logarithms else noise) ** 2)


def _in_chunks(function: Callable[[Floats], Floats], rows: Floats) -> Floats:
    step = 2_000
    parts = [function(rows[start : start + step]) for start in range(0, len(rows), step)]
    return np.concatenate(parts) if parts else np.empty(0)
