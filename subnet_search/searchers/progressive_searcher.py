"""The greedy path behind ask and tell: every drop is evaluated, the best is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from search_spaces import CostTable, SearchSpace, SubnetConfig, SubnetSearchError
from search_spaces.presets import ladders, steps_down
from subnet_search.record import Evaluation, Objective, check_objectives, check_values

from .feasible import Feasible, SpaceExhausted
from .progressive import rate


class ProgressiveSearcher:
    """Asks for every drop of one rung from where it stands, keeps the best, and goes on: a nested path.

    It begins with the largest sub-net, or with limits with the projection of that into them. The drop kept is that
    which loses least of the first objective to be high for each unit it saves of the first one to be low; with
    objectives of one direction the first is the quality, and a second one the price. Failed drops are not taken
    unless all failed. Nothing is drawn, so that the seed makes no difference. A path has a step for each rung:
    search a space of few widths, such as `ElasticSettings(groups_per_layer=4)` gives.

    Args:
        space: what may be proposed.
        objectives: order and goals of the values that will be told.
        seed: not used.
        limits: upper bounds by cost name; they need `costs`.
        costs: the space's cost table.

    Raises:
        InvalidInput: for an infeasible limit (the message says the nearest feasible value).
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        seed: int = 0,
        limits: Mapping[str, float] | None = None,
        costs: CostTable | None = None,
    ) -> None:
        self._space = space
        self._objectives = check_objectives(objectives)
        self._feasible = Feasible(space, costs, limits)
        self._ladders = ladders(space)
        goals = [objective.goal for objective in self._objectives]
        self._quality = goals.index("max") if "max" in goals else 0
        prices = [i for i, goal in enumerate(goals) if goal == "min" and i != self._quality]
        self._price = prices[0] if prices else None
        self._known: dict[str, Evaluation] = {}
        self._asked: set[str] = set()
        self._stand_at(self._feasible.repair(space.largest()))

    def _stand_at(self, config: SubnetConfig) -> None:
        self._here = config
        below = (drop for _, drop in steps_down(self._space, config, self._ladders))
        self._below = [drop for drop in below if self._feasible.allows(drop)]

    def ask(self) -> SubnetConfig:
        """The next sub-net to evaluate: canonical, inside the limits, never one that was asked or told before.

        Raises:
            SpaceExhausted: at the end of the path.
            SubnetSearchError: while all sub-nets of a step are being evaluated.
        """
        while True:
            unknown = [c for c in (self._here, *self._below) if c.key not in self._known]
            for config in unknown:
                if config.key not in self._asked:
                    self._asked.add(config.key)
                    return config
            if unknown:
                raise SubnetSearchError(
                    f"the next step of the path depends on {len(unknown)} sub-nets that were asked for, such as "
                    f"{unknown[0].key}: tell what they are worth first"
                )
            if not self._below:
                raise SpaceExhausted(
                    f"the path ends with {self._here.key}: no drop is left within the limits"
                )
            self._stand_at(min(self._below, key=self._badness))

    def tell(self, evaluation: Evaluation) -> None:
        """Takes what was found, in any order, also for sub-nets that were never asked for; only once for each.

        Raises:
            InvalidInput: for a config of another space or another number of values.
        """
        config = self._space.canonical(evaluation.config)
        check_values(self._objectives, evaluation)
        self._known.setdefault(config.key, evaluation)

    def _badness(self, drop: SubnetConfig) -> float:
        here, there = self._known[self._here.key], self._known[drop.key]
        if not there.ok:
            return math.inf
        loss = self._objectives[self._quality].loss
        if not here.ok:
            return loss(there.values[self._quality])
        lost = loss(there.values[self._quality]) - loss(here.values[self._quality])
        if self._price is None:
            return lost
        return rate(lost, here.values[self._price] - there.values[self._price])
