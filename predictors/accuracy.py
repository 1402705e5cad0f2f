"""A predictor of accuracy, or of any other number measured of sub-nets: the family that orders them best is taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from search_spaces import CostTable, InvalidInput, SearchSpace, nearest_names

from .base import Config, Floats, Model
from .families import FAMILIES
from .features import FeatureKind, Features
from .intervals import check_coverage, cv_plus
from .quality import tau_near
from .warping import Warp, mean_of

FOLDS = 5
LEAST_ROWS = 10
TUNED_ALIKE = 100
TAU_ERROR = 2 / 3  # over sqrt(rows): tau's standard error, within which the family that comes first is taken
# A predictor is used if its tau near the front is at least this: three of five pairs are then in the right order.
# Values that have nothing to do with configs pass now and then (of 30 draws of 10, 21 and 43 rows 7, 5 and 3 did); a
# searcher that trusts them for a while loses little against one that draws at random, and looks again soon.
GATE = 0.2
SCALES, MEDIAN = (0.3, 3.0), 0.6745  # by which a spread may be corrected; median error in standard deviations

Exact = tuple[Callable[[np.ndarray], np.ndarray], ...]


@dataclass(frozen=True)
class Fold:
    """What cross-validation keeps.

    Attributes:
        fold_of: the fold of each row `[num_rows]`.
        models: one for each fold, which has not seen it.
        mean, std: of each row, from that model `[num_rows]`.
    """

    fold_of: NDArray[np.int64]
    models: tuple[Model, ...]
    mean: Floats
    std: Floats


@dataclass(frozen=True)
class Chosen:
    """A family, and how it did on rows that it had not seen.

    Attributes:
        family: its name.
        model: fitted to all rows.
        folds: its cross-validation.
        tau: of every family.
        scale: what its spreads have to be multiplied with to be as large as its errors usually are near the front: a
            few sub-nets that do not work at all would else make it look unsure of all others.
    """

    family: str
    model: Model
    folds: Fold
    tau: Mapping[str, float]
    scale: float


class AccuracyPredictor:
    """Learns from 10 to some 5,000 rows what a sub-net will reach.

    Several families are compared by cross-validation; what counts is the order of pairs of which at least one lies
    near the front. Values are warped first (see `Warp`); means and intervals come back in their own unit.

    Args:
        space: whose configs are predicted.
        costs: its cost table; costs are then features, too.
        exact: closed forms of other costs, likewise.
        families: keys of `FAMILIES`, the preferred first.
        features: kinds of features; by default knobs, and costs where they are known.
        gate: the least tau with which `trusted` is true.
        coverage: share of measurements that intervals should hold.
        seed: of the folds.

    Attributes:
        chosen: what cross-validation found, after `fit`.
        features: what configs look like to it.
        warp: how values are warped.

    Raises:
        InvalidInput: for unknown families or a coverage outside 0 to 1.
    """

    chosen: Chosen
    warp: Warp

    def __init__(
        self,
        space: SearchSpace,
        costs: CostTable | None = None,
        *,
        exact: Exact = (),
        families: Sequence[str] = tuple(FAMILIES),
        features: tuple[FeatureKind, ...] | None = None,
        gate: float = GATE,
        coverage: float = 0.9,
        seed: int = 0,
    ) -> None:
        for name in families:
            if name not in FAMILIES:
                known = ", ".join(FAMILIES)
                raise InvalidInput(
                    f"a family of predictors is one of {known}, got {name!r}{nearest_names(name, FAMILIES)}"
                )
        if not families:
            raise InvalidInput("a predictor needs at least one family, got none")
        kinds: tuple[FeatureKind, ...] = ("knobs", "cost") if costs is not None or exact else ("knobs",)
        self._space, self._families, self._seed = space, tuple(families), seed
        self.features = Features(space, costs, features or kinds, exact)
        self._gate, self._coverage = gate, check_coverage(coverage)

    @property
    def trusted(self) -> bool:
        """Whether it passed the gate."""
        return self.tau >= self._gate

    @property
    def tau(self) -> float:
        """The chosen family's tau near the front, on rows that it had not seen."""
        return self.chosen.tau[self.chosen.family]

    @property
    def verdict(self) -> str:
        """One line for people: which family, how good, used or not."""
        use = "used" if self.trusted else "not used"
        return f"{self.chosen.family}: Kendall's tau {self.tau:.2f} near the front, {use} (from {self._gate:g} on)"

    def fit(self, configs: Sequence[Config], values: Sequence[float]) -> Self:
        """Learns from configs `[num_rows]` and their values; near the front is the better half.

        Raises:
            InvalidInput: for fewer than 10 rows, or values that are not finite or not one for each config.
        """
        if len(values) != len(configs) or len(values) < LEAST_ROWS:
            raise InvalidInput(
                f"a predictor learns from at least {LEAST_ROWS} configs and one value of each, got {len(configs)} "
                f"configs and {len(values)} values"
            )
        return self.fit_rows(self._space.encode(configs), np.asarray(values, dtype=np.float64))

    def fit_rows(
        self,
        rows: NDArray[np.int64],
        values: Floats,
        noise: Floats | None = None,
        near: NDArray[np.bool_] | None = None,
    ) -> Self:
        """As `fit`, from canonical rows `[num_rows, num_knobs]`.

        Args:
            rows: encoded configs.
            values: `[num_rows]`, large ones better, unless `near` is given.
            noise: standard errors of the values `[num_rows]`.
            near: marks the rows whose order matters `[num_rows]`.
        """
        if not np.isfinite(values).all():
            raise InvalidInput("a predictor learns from finite values only; leave out what failed")
        near = values >= np.median(values) if near is None else near
        self.warp = Warp(values)
        x, y, variance = self._learnt(rows, values, noise)
        fold_of = np.random.default_rng((self._seed, len(y))).permutation(np.arange(len(y)) % FOLDS)
        tau: dict[str, float] = {}
        found: dict[str, tuple[Model, Fold]] = {}
        for name in self._families:
            model = FAMILIES[name](self.features.groups).fit(x, y, variance)
            found[name] = model, cross_validate(model, x, y, variance, fold_of)
            tau[name] = tau_near(found[name][1].mean, y, near)
        margin = TAU_ERROR / len(y) ** 0.5
        best = next(name for name in self._families if tau[name] >= max(tau.values()) - margin)
        model, folds = found[best]
        errors = np.abs(y - folds.mean) / folds.std
        scale = float(np.clip(np.median(errors[near]) / MEDIAN, *SCALES))
        self.chosen = Chosen(best, model, folds, tau, scale)
        self._scores = errors
        return self

    def update_rows(
        self, rows: NDArray[np.int64], values: Floats, noise: Floats | None = None, *, tune: bool = False
    ) -> Self:
        """Learns from other rows with the family that was chosen; quality and intervals stay those of `fit`, the latter
        in warped values: where `tune` finds another warp, they are as wide as that makes them.

        Args:
            rows, values, noise: as for `fit_rows`.
            tune: whether the warp and the family's own settings are found anew.
        """
        if tune:
            self.warp = Warp(values)
        x, y, variance = self._learnt(rows, values, noise)
        learn = self.chosen.model.anew if tune else self.chosen.model.again
        self.chosen = dataclasses.replace(self.chosen, model=learn(x, y, variance))
        return self

    def _learnt(
        self, rows: NDArray[np.int64], values: Floats, noise: Floats | None
    ) -> tuple[Floats, Floats, Floats | None]:
        variance = None if noise is None else (noise * self.warp.slope(values)) ** 2
        return self.features(rows), self.warp(values), variance

    def warped(self, x: Floats) -> tuple[Floats, Floats]:
        """Mean and corrected spread of new measurements of `features` in warped values, both `[num_rows]`.

        `warp.back` turns them into values.
        """
        mean, std = self.chosen.model.predict(x)
        return mean, std * self.chosen.scale

    def warped_mean(self, x: Floats) -> Floats:
        """The mean alone `[num_rows]`, which is less work."""
        return self.chosen.model.expect(x)

    def predict(self, configs: Sequence[Config]) -> Floats:
        """The value expected of each config: `[num_configs]`."""
        mean, std = self.warped(self.features(self._space.encode(configs)))
        return mean_of(self.warp.back, mean, std)

    def predict_interval(self, configs: Sequence[Config]) -> tuple[Floats, Floats]:
        """Low and high `[num_configs]`, see `cv_plus`; infinite where too few rows were seen."""
        x = self.features(self._space.encode(configs))
        each = [model.predict(x) for model in self.chosen.folds.models]
        means, stds = np.stack([mean for mean, _ in each]), np.stack([std for _, std in each])
        low, high = cv_plus(means, stds, self.chosen.folds.fold_of, self._scores, self._coverage)
        return self._back(low), self._back(high)

    def _back(self, warped: Floats) -> Floats:
        return np.asarray(np.where(np.isfinite(warped), self.warp.back(warped), warped))


def cross_validate(
    model: Model, x: Floats, y: Floats, noise: Floats | None, fold_of: NDArray[np.int64]
) -> Fold:
    """Predicts every fold from the others.

    Of few rows each fold's model finds its settings by itself: taken from all rows, they would let values that have
    nothing to do with configs seem predictable. From `TUNED_ALIKE` rows on they are those of `model`, which saves time.
    """
    mean, std = np.empty(len(y)), np.empty(len(y))
    models = []
    for fold in range(int(fold_of.max()) + 1):
        rest, held = fold_of != fold, fold_of == fold
        known = x[rest], y[rest], None if noise is None else noise[rest]
        models.append(model.again(*known) if len(y) >= TUNED_ALIKE else model.anew(*known))
        mean[held], std[held] = models[-1].predict(x[held])
    return Fold(fold_of, tuple(models), mean, np.maximum(std, 1e-9))
