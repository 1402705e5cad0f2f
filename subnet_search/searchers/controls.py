"""The baselines that stand beside every search: uniform widths and chance."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from search_spaces import SubnetConfig
from subnet_search.record import Evaluation

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


def uniform_configs(feasible: Feasible, most: int) -> list[SubnetConfig]:
    """Up to `most` feasible sub-nets of one width share and full depth, evenly from the largest one down."""
    distinct = dict.fromkeys(feasible.space.uniform(float(share)) for share in SHARES)
    allowed = [config for config in distinct if feasible.allows(config)]
    picks = np.linspace(0, len(allowed) - 1, min(most, len(allowed))).round().astype(int)
    return [allowed[pick] for pick in picks]
