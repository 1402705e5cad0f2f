"""What a guided search holds true of sub-nets that were not evaluated: exact costs, and predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from predictors import AccuracyPredictor
from predictors.warping import NODES, WEIGHTS
from search_spaces import COST_NAMES, CostTable, InvalidInput, SearchSpace
from subnet_search.record import Objective, non_dominated

from .bounds import Bounds
from .success import Success

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
ClosedForm = Callable[[Ints], NDArray[Any]]
Foresee = Callable[[AccuracyPredictor, Floats], tuple[Floats, Floats]]
SpreadOut = Callable[[AccuracyPredictor, Floats, Floats], tuple[Floats, Floats]]
FAMILIES = ("gp", "ridge", "trees")  # boosting and networks take longer to compare than they are worth here
NEAR_SHARE = 0.5  # of the rows are near the front
CERTAIN = np.ones(1)
PROBES, HOPE = 200, 2.0  # candidates, and standard deviations, from which hopes are drawn


@dataclass(frozen=True)
class Seen:
    """Evaluations as arrays.

    Attributes:
        rows: of all, failed ones too `[num_rows, num_knobs]`.
        losses: `[num_rows, num_objectives]`, NaN where failed.
        spreads: standard errors `[num_rows, num_objectives]`, 0 where unknown.
        full: which evaluations were made in full `[num_rows]`: others are estimates, to learn from only.
    """

    rows: Ints
    losses: Floats
    spreads: Floats
    full: NDArray[np.bool_]

    @property
    def ok(self) -> NDArray[np.bool_]:
        """Which rows did not fail."""
        return np.asarray(~np.isnan(self.losses).any(axis=1))

    def first(self, count: int) -> Seen:
        """The first `count` of them."""
        return Seen(self.rows[:count], self.losses[:count], self.spreads[:count], self.full[:count])


@dataclass(frozen=True)
class Outlook:
    """What candidates may be like.

    Attributes:
        losses: those that they may have, for each objective `[num_candidates, num_values]`.
        weights: the probabilities of these, for each objective `[num_values]`.
        log_chances: logarithms of the probabilities that they do not fail and meet all bounds `[num_candidates]`.
    """

    losses: tuple[Floats, ...]
    weights: tuple[Floats, ...]
    log_chances: Floats

    @property
    def chances(self) -> Floats:
        """The probabilities that they do not fail and meet all bounds `[num_candidates]`."""
        return np.asarray(np.exp(self.log_chances))

    @property
    def expected(self) -> Floats:
        """`[num_candidates, num_objectives]`."""
        return np.stack([v @ w for v, w in zip(self.losses, self.weights, strict=True)], axis=1)


@dataclass(frozen=True)
class Described:
    """Candidates `[num_candidates, num_knobs]`, their features, and the losses that are known exactly."""

    rows: Ints
    features: Floats
    exact: tuple[Floats | None, ...]

    def of(self, picks: NDArray[np.bool_] | Ints) -> Described:
        """Some of them."""
        exact = tuple(None if losses is None else losses[picks] for losses in self.exact)
        return Described(self.rows[picks], self.features[picks], exact)


class Beliefs:
    """One predictor for each objective that is not known in closed form, and one of whether sub-nets fail.

    Values are learnt from what succeeded. What a sub-net is worth counts as much as it is probable that it succeeds.

    Args:
        space: of the configs.
        objectives: those with `exact`, or the name of a cost in `costs`, are taken as known.
        costs: the space's cost table.
        known: closed forms of costs that are no objectives; like all others they help to predict.
        bounds: the losses that are allowed.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        costs: CostTable | None,
        known: Sequence[ClosedForm] = (),
        bounds: Bounds | None = None,
    ) -> None:
        self._bounds = Bounds.of(objectives, None) if bounds is None else bounds
        self._exact = [_closed_form(objective, costs) for objective in objectives]
        self._signs = [objective.loss(1.0) for objective in objectives]
        self._success = Success()
        functions = (*(o.exact for o in objectives if o.exact is not None), *known)
        self._known = (*known, *(() if costs is None else (costs.macs,)))
        self._predictors = {
            place: AccuracyPredictor(space, costs, exact=functions, families=FAMILIES)
            for place, exact in enumerate(self._exact)
            if exact is None
        }

    @property
    def cost(self) -> Callable[[Ints], Floats] | None:
        """The first objective known in closed form, as a loss, else another such cost; None if there is none."""
        for exact, sign in zip(self._exact, self._signs, strict=True):
            if exact is not None:
                return partial(_signed, exact, sign)
        return partial(_signed, self._known[0], 1.0) if self._known else None

    @property
    def trusted(self) -> bool:
        """Whether all predictors passed their gates."""
        return all(predictor.trusted for predictor in self._predictors.values())

    @property
    def verdicts(self) -> dict[int, str]:
        """What is to be said of each predicted objective."""
        return {place: predictor.verdict for place, predictor in self._predictors.items()}

    def choose(self, seen: Seen) -> None:
        """Chooses and tunes each objective's predictor."""
        near = _near(seen.losses[seen.ok])
        for place, predictor in self._predictors.items():
            predictor.fit_rows(seen.rows[seen.ok], *_values(seen, place), near=near)

    def learn(self, seen: Seen, *, tune: bool = False) -> None:
        """Learns from more with the families that were chosen, tuned anew or not."""
        self._success.learn(_traits(seen.rows, self._known_losses(seen.rows)), seen.ok)
        for place, predictor in self._predictors.items():
            predictor.update_rows(seen.rows[seen.ok], *_values(seen, place), tune=tune)

    def described(self, rows: Ints) -> Described:
        """Rows with what never changes about them."""
        features = next((predictor.features for predictor in self._predictors.values()), None)
        known = np.empty((len(rows), 0)) if features is None else features(rows)
        return Described(rows, known, self._known_losses(rows))

    def _known_losses(self, rows: Ints) -> tuple[Floats | None, ...]:
        return tuple(
            None if function is None else sign * function(rows)
            for function, sign in zip(self._exact, self._signs, strict=True)
        )

    def outlook(self, candidates: Described) -> Outlook:
        """What to expect of candidates."""
        return self._outlook(candidates, AccuracyPredictor.warped, self._quadrature)

    def hopes(self, candidates: Described) -> Outlook:
        """What candidates would lose at best: each as unsure as the least sure of a few of them."""
        return self._outlook(candidates, _roughly, self._optimum)

    def _outlook(self, candidates: Described, foresee: Foresee, spread_out: SpreadOut) -> Outlook:
        losses: list[Floats] = []
        weights: list[Floats] = []
        log_chances = np.zeros(len(candidates.rows))
        if not self._success.is_certain:  # candidates are many
            log_chances += self._success.log_chances(_traits(candidates.rows, candidates.exact))
        for place, exact in enumerate(candidates.exact):
            most = self._bounds.most[place]
            if exact is not None:
                values, weight = exact[:, None], CERTAIN
                log_chances[exact > most] = -np.inf
            else:
                predictor = self._predictors[place]
                mean, std = foresee(predictor, candidates.features)
                values, weight = spread_out(predictor, mean, std)
                if np.isfinite(most):
                    least = predictor.warp(np.array([-most]))
                    log_chances += log_ndtr((mean - least) / np.maximum(std, 1e-9))
            losses.append(values)
            weights.append(weight)
        return Outlook(tuple(losses), tuple(weights), log_chances)

    @staticmethod
    def _quadrature(predictor: AccuracyPredictor, mean: Floats, std: Floats) -> tuple[Floats, Floats]:
        return -predictor.warp.back(mean[:, None] + std[:, None] * NODES), WEIGHTS

    @staticmethod
    def _optimum(predictor: AccuracyPredictor, mean: Floats, std: Floats) -> tuple[Floats, Floats]:
        return -predictor.warp.back(mean + HOPE * std)[:, None], CERTAIN


def _roughly(predictor: AccuracyPredictor, x: Floats) -> tuple[Floats, Floats]:
    """Means, and for all the spread of the least sure of a few of them, both `[num_rows]`."""
    probes = x[:: max(1, len(x) // PROBES)]
    std = float(predictor.warped(probes)[1].max(initial=0.0))
    return predictor.warped_mean(x), np.full(len(x), std)


def _traits(rows: Ints, losses: Sequence[Floats | None]) -> Floats:
    """What may make sub-nets fail: their knobs, and what they are known to cost."""
    return np.column_stack([rows, *(column for column in losses if column is not None)])


def _signed(function: ClosedForm, sign: float, rows: Ints) -> Floats:
    return sign * np.asarray(function(rows), dtype=np.float64)


def _closed_form(objective: Objective, costs: CostTable | None) -> Callable[[Ints], Floats] | None:
    if objective.exact is not None:
        function = objective.exact
    elif costs is not None and objective.name in COST_NAMES:
        function = getattr(costs, objective.name)
    else:
        return None

    def checked(rows: Ints) -> Floats:
        values = np.asarray(function(rows), dtype=np.float64)
        if values.shape != (len(rows),) or not np.isfinite(values).all():
            told = "some that are not finite" if values.shape == (len(rows),) else f"shape {values.shape}"
            raise InvalidInput(
                f"exact of objective {objective.name!r} must give one finite number for each of {len(rows)} configs, "
                f"got {told}; mend it, or leave it out and let evaluations tell"
            )
        return values

    return checked


def _values(seen: Seen, place: int) -> tuple[Floats, Floats | None]:
    """Values of what succeeded, of which large ones are good, and their standard errors."""
    values, spreads = -seen.losses[seen.ok, place], seen.spreads[seen.ok, place]
    return values, spreads if spreads.any() else None


def _near(losses: Floats) -> NDArray[np.bool_]:
    """Marks fronts, fronts behind them and so on, until half of the rows are marked."""
    near = np.zeros(len(losses), dtype=bool)
    while near.sum() < NEAR_SHARE * len(losses):
        left = np.flatnonzero(~near)
        near[left[non_dominated(losses[left])]] = True
    return near
