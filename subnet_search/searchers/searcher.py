"""What every searcher can do, and how to get one by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from search_spaces import CostTable, InvalidInput, SearchSpace, SubnetConfig, nearest_names
from subnet_search.record import Evaluation, Objective

from .controls import UniformSearcher
from .guided import GuidedSearcher
from .optuna_search import METHODS, OptunaSearcher
from .progressive_searcher import ProgressiveSearcher


class Searcher(Protocol):
    """Proposes sub-nets and learns from what was found out about them."""

    def ask(self) -> SubnetConfig:
        """The next sub-net to evaluate; `SpaceExhausted` when all are known, or a path has ended."""

    def tell(self, evaluation: Evaluation) -> None:
        """Takes one evaluation, in any order, also of a sub-net that was never asked for."""


SEARCHERS: Mapping[str, Callable[..., Searcher]] = {
    "guided": GuidedSearcher,
    **{name: partial(OptunaSearcher, name) for name in METHODS},
    "progressive": ProgressiveSearcher,
    "uniform": UniformSearcher,
}


def make_searcher(
    name: str,
    space: SearchSpace,
    objectives: Sequence[Objective],
    *,
    seed: int = 0,
    limits: Mapping[str, float] | None = None,
    costs: CostTable | None = None,
    bounds: Mapping[str, float] | None = None,
) -> Searcher:
    """A searcher by its name in `SEARCHERS`: guided, random, nsga2, nsga3, tpe, gp, qmc, progressive or uniform.

    Args:
        name: which one.
        space: what may be proposed.
        objectives: order and goals of the values that will be told.
        seed: the same seed and the same answers give the same proposals.
        limits: upper bounds by cost name; every proposal meets them.
        costs: the space's cost table, needed for limits.
        bounds: the worst allowed values of measured objectives, by name; "guided" keeps to them as well as it can
            predict, the others take no notice.

    Raises:
        InvalidInput: for an unknown name, an infeasible limit, or a bound on what is no objective.
    """
    if name not in SEARCHERS:
        known = ", ".join(SEARCHERS)
        raise InvalidInput(f"a searcher must be one of {known}, got {name!r}{nearest_names(name, SEARCHERS)}")
    if SEARCHERS[name] is GuidedSearcher:
        return GuidedSearcher(space, objectives, seed=seed, limits=limits, costs=costs, bounds=bounds)
    return SEARCHERS[name](space, objectives, seed=seed, limits=limits, costs=costs)
