"""Who proposes the next sub-net, and the loop that asks, evaluates and records; no torch."""

from .budget import Budget
from .drive import SearchResult, search
from .feasible import SpaceExhausted
from .optuna_search import OptunaSearcher
from .recorder import Evaluator
from .searcher import SEARCHERS, Searcher, make_searcher

__all__ = [
    "SEARCHERS",
    "Budget",
    "Evaluator",
    "OptunaSearcher",
    "SearchResult",
    "Searcher",
    "SpaceExhausted",
    "make_searcher",
    "search",
]
