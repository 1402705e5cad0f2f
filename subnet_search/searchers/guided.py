"""A search that learns from what was evaluated which sub-nets are worth evaluating."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from search_spaces import CostTable, SearchSpace, SubnetConfig
from subnet_search.record import Evaluation, Objective, check_objectives, check_values

from .beliefs import Beliefs, ClosedForm, Seen
from .bounds import Bounds
from .candidates import Candidates
from .feasible import Feasible, SpaceExhausted, check_seed
from .improvement import Improvement, pick_batch
from .optuna_search import OptunaSearcher
from .screening import Screen

START = 10  # sub-nets spread over cost before anything is predicted
LEAST = 10  # evaluations that did not fail, to predict from
CHOOSE_AGAIN, TUNE_AGAIN = 1.5, 1.2  # after so many times as many evaluations
BATCH_SHARE = 25  # one sub-net for each so many evaluations is proposed from one fit
SPREAD_POOL = 4_000
HUGE = 1e100  # what is larger counts as this: volumes are products


@dataclass(frozen=True)
class Moment:
    """All that a plan depends on.

    Attributes:
        turn: number of the ask that needed it.
        told: how many evaluations were known.
        pending: keys of what was asked for and not told.
    """

    turn: int
    told: int
    pending: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many proposals are made from one plan."""
        return max(1, self.told // BATCH_SHARE)


class GuidedSearcher:
    """Predicts what was not evaluated, and asks for what is expected to add most hypervolume.

    It begins with sub-nets spread over cost. Then, again and again: predictors are fitted to what was truly
    evaluated (see `AccuracyPredictor`), every candidate is screened (all of a space that can be listed, else sub-nets
    bred from the front), and the batch is taken that is expected to improve the front most, noise and the predictors'
    uncertainty counted in (see `Improvement`). Costs known in closed form are not predicted. Sub-nets that
    are still being evaluated count as if they had come out as expected. While a predictor is below its gate, NSGA-II
    proposes instead; `verdict` says so.

    A plan is a function of the evaluations told, in their order, of what is pending, and of (seed, number of the
    ask): so a resumed search equals the unbroken one, and `replay` needs no fit.

    Args:
        space: what may be proposed.
        objectives: order and goals of the values that will be told.
        seed: a whole number from 0 to 2^32 - 1.
        limits: upper bounds by cost name; they need `costs`.
        costs: the space's cost table; objectives named as its costs are then known.
        known: closed forms of costs that are no objectives, such as multiply-adds where milliseconds are to be low:
            functions of encoded configs `[num_configs, num_knobs]`. A cost table already holds its own.
        bounds: the worst allowed values by name of an objective. What is expected of a sub-net counts as much as it
            is probable that it meets them; until one does, those most likely to are proposed.

    Raises:
        InvalidInput: for an infeasible limit (the message says the nearest feasible value), a bound on what is no
            objective, or a bad seed.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        seed: int = 0,
        limits: Mapping[str, float] | None = None,
        costs: CostTable | None = None,
        known: Sequence[ClosedForm] = (),
        bounds: Mapping[str, float] | None = None,
    ) -> None:
        self._seed = check_seed(seed)
        self._objectives = check_objectives(objectives)
        self._feasible = Feasible(space, costs, limits)
        self._candidates = Candidates(self._feasible)
        self._bounds = Bounds.of(self._objectives, bounds)
        self._beliefs = Beliefs(space, self._objectives, costs, known, self._bounds)
        self._screen = Screen(self._candidates, self._beliefs, self._bounds)
        self._chosen_at = self._tuned_at = 0
        self._known: dict[str, Evaluation] = {}
        self._waiting: dict[str, SubnetConfig] = {}
        self._turn = -1
        self._moment: Moment | None = None
        self._queue: tuple[Moment, list[SubnetConfig]] | None = None
        self._start: list[SubnetConfig] | None = None
        self.verdict = "nothing is predicted yet"

    def ask(self) -> SubnetConfig:
        """The next sub-net to evaluate: canonical, inside the limits, never one that was asked or told before.

        Raises:
            SpaceExhausted: when there is no such sub-net.
        """
        moment = self._begin()
        unseen = (config for config in self._proposals(moment) if not self._is_seen(config))
        config = next(unseen, None)
        if config is None:
            rng = np.random.default_rng((self._seed, self._turn))
            config = self._feasible.unseen(self._near(rng), self._known.keys() | self._waiting.keys(), rng)
        self._waiting[config.key] = config
        return config

    def replay(self, config: SubnetConfig) -> SubnetConfig:
        """Does what `ask` did when it returned `config` in a recorded search, without its waiting time."""
        config = self._feasible.space.canonical(config)
        if self._is_seen(config):
            return self.ask()
        self._begin()
        self._waiting[config.key] = config
        return config

    def tell(self, evaluation: Evaluation) -> None:
        """Takes what was found, in any order, also for sub-nets that were never asked for; only once for each.

        Raises:
            InvalidInput: for a config of another space or another number of values.
        """
        config = self._feasible.space.canonical(evaluation.config)
        check_values(self._objectives, evaluation)
        self._waiting.pop(config.key, None)
        self._known.setdefault(config.key, evaluation)

    def _is_seen(self, config: SubnetConfig) -> bool:
        return config.key in self._known or config.key in self._waiting

    def _begin(self) -> Moment | None:
        """Counts the ask; the moment whose plan it follows, None while it is one of the first."""
        self._turn += 1
        if len(self._known) + len(self._waiting) < START:
            return None
        if self._moment is None or self._turn - self._moment.turn >= self._moment.size:
            self._moment = Moment(self._turn, len(self._known), tuple(self._waiting))
        return self._moment

    def _proposals(self, moment: Moment | None) -> list[SubnetConfig]:
        if moment is None:
            if self._start is None:
                self._start = self._spread()
            return self._start
        if self._queue is None or self._queue[0] != moment:
            self._queue = moment, self._plan(moment)
        return self._queue[1]

    def _spread(self) -> list[SubnetConfig]:
        """Sub-nets evenly spread over cost; over nothing where no cost is known."""
        rng = np.random.default_rng((self._seed, 0))
        rows = self._candidates.everything
        if rows is None:
            rows = self._candidates.random(SPREAD_POOL, rng)
        cost = self._beliefs.cost
        return self._candidates.spread(
            rows, rng.random(len(rows)) if cost is None else cost(rows), START, rng
        )

    def _near(self, rng: np.random.Generator) -> SubnetConfig:
        good = [e.config for e in self._known.values() if e.ok]
        return good[int(rng.integers(len(good)))] if good else self._feasible.space.smallest()

    def _plan(self, moment: Moment) -> list[SubnetConfig]:
        told = list(itertools.islice(self._known.values(), moment.told))
        seen = self._seen(told)
        if not self._ready(seen):
            return self._evolved(moment, told)
        rng = np.random.default_rng((self._seed, moment.turn))
        pending = self._feasible.space.encode([self._config(key) for key in moment.pending])
        front, reference = seen.losses[seen.full], self._bounds.reference(seen.losses[seen.full])
        front = front[self._bounds.met(front)]
        some = bool(len(front))
        if some and len(pending):
            expected = self._beliefs.outlook(self._beliefs.described(pending)).expected
            front = np.concatenate([front, expected[self._bounds.met(expected)]])
        known = {row.tobytes() for row in np.concatenate([seen.rows, pending])}
        candidates = self._screen(seen, known, Improvement(front, reference) if some else None, rng)
        if not len(candidates.rows):
            return []
        outlook = self._beliefs.outlook(candidates)
        if some:
            picks = pick_batch(
                outlook.losses, outlook.weights, outlook.chances, front, reference, moment.size
            )
        else:
            picks = np.argsort(-outlook.log_chances, kind="stable")[: moment.size].tolist()
        return self._feasible.space.decode(candidates.rows[picks]) if picks else []

    def _config(self, key: str) -> SubnetConfig:
        return self._waiting[key] if key in self._waiting else self._known[key].config

    def _seen(self, told: Sequence[Evaluation]) -> Seen:
        shape = len(told), len(self._objectives)
        losses, spreads = np.full(shape, np.nan), np.zeros(shape)
        for place, evaluation in enumerate(told):
            if evaluation.ok:
                pairs = zip(self._objectives, evaluation.values, strict=True)
                losses[place] = [objective.loss(value) for objective, value in pairs]
                spreads[place] = evaluation.spread or 0.0
        rows = self._feasible.space.encode([e.config for e in told])
        losses, spreads = np.clip(losses, -HUGE, HUGE), np.minimum(spreads, HUGE)
        return Seen(rows, losses, spreads, np.array([e.ok and e.in_full for e in told], dtype=bool))

    def _ready(self, seen: Seen) -> bool:
        """Brings the beliefs up to date; whether they may be used."""
        chosen_at, tuned_at = _last(CHOOSE_AGAIN, len(seen.rows)), _last(TUNE_AGAIN, len(seen.rows))
        if min(seen.first(chosen_at).ok.sum(), seen.full.sum()) < LEAST:
            self.verdict = f"fewer than {LEAST} evaluations to predict from: NSGA-II proposes"
            return False
        if self._chosen_at != chosen_at:
            self._beliefs.choose(seen.first(chosen_at))
            self._chosen_at, self._tuned_at = chosen_at, chosen_at
            names = {self._objectives[place].name: said for place, said in self._beliefs.verdicts.items()}
            self.verdict = "; ".join(f"{name} by {said}" for name, said in names.items())
            if not self._beliefs.trusted:
                self.verdict += ": NSGA-II proposes"
        if not self._beliefs.trusted:
            return False
        if self._tuned_at < tuned_at:
            self._beliefs.learn(seen.first(tuned_at), tune=True)
            self._tuned_at = tuned_at
        self._beliefs.learn(seen)
        return True

    def _evolved(self, moment: Moment, told: Sequence[Evaluation]) -> list[SubnetConfig]:
        """What NSGA-II would propose after the same evaluations."""
        evolution = OptunaSearcher(
            "nsga2",
            self._feasible.space,
            self._objectives,
            seed=int(np.random.SeedSequence((self._seed, moment.turn)).generate_state(1)[0]),
            limits=self._feasible.limits,
            costs=self._feasible.costs,
        )
        for evaluation in told:
            evolution.tell(evaluation)
        found: list[SubnetConfig] = []
        try:
            while len(found) < moment.size:
                config = evolution.ask()
                if config.key not in moment.pending:
                    found.append(config)
        except SpaceExhausted:
            pass
        return found


def _last(growth: float, count: int) -> int:
    """The last number up to `count` of LEAST, LEAST * growth, ...; it depends on nothing else."""
    last = LEAST
    while (later := int(last * growth) + 1) <= count:
        last = later
    return last
