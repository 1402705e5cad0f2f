"""The baselines that stand beside every search: uniform widths and chance."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from search_spaces import CostTable, SearchSpace, SubnetConfig
from subnet_search.record import Evaluation, Objective, check_objectives, check_values

from .feasible import Feasible, SpaceExhausted

SHARES = np.linspace(1, 0.01, 100)


class Listed:
    """A searcher that proposes the given sub-nets in order and learns nothing."""

    def __init__(self, configs: Iterable[SubnetConfig]) -> None:
        self._configs = iter(configs)

    def ask(self) -> SubnetConfig:
        """The next of the list; `SpaceExhausted` after the last."""
        for config in self._configs:
            return config
        raise SpaceExhausted("every sub-net of the list was proposed already")

    def tell(self, evaluation: Evaluation) -> None:
        """Does nothing."""


class UniformSearcher(Listed):
    """Proposes sub-nets of one width share and full depth, all that differ; few of them are spread evenly already.

    Args:
        space, limits, costs: as of every searcher.
        objectives, seed: not used.
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
        self._space, self._objectives = space, check_objectives(objectives)
        super().__init__(spread_out(uniform_configs(Feasible(space, costs, limits), len(SHARES))))

    def tell(self, evaluation: Evaluation) -> None:
        """Learns nothing, but refuses what does not fit."""
        self._space.check(evaluation.config)
        check_values(self._objectives, evaluation)


def spread_out(configs: Sequence[SubnetConfig]) -> list[SubnetConfig]:
    """The same in another order: the first, the last, and then always from the middle of the widest gap.

    However early one stops, what was taken is spread over the whole list.
    """
    order = list(dict.fromkeys((0, len(configs) - 1))) if configs else []
    gaps = deque([(0, len(configs) - 1)])
    while gaps:
        left, right = gaps.popleft()  # halved in turn, they are the widest
        if right - left > 1:
            middle = (left + right) // 2
            order.append(middle)
            gaps += [(left, middle), (middle, right)]
    return [configs[place] for place in order]


def uniform_configs(feasible: Feasible, most: int) -> list[SubnetConfig]:
    """Up to `most` feasible sub-nets of one width share and full depth, evenly from the largest one down."""
    distinct = dict.fromkeys(feasible.space.uniform(float(share)) for share in SHARES)
    allowed = [config for config in distinct if feasible.allows(config)]
    picks = np.linspace(0, len(allowed) - 1, min(most, len(allowed))).round().astype(int)
    return [allowed[pick] for pick in picks]
