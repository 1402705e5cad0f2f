"""Who proposes the next sub-net, and the loop that asks, evaluates and records; no torch."""

from .budget import Budget
from .controls import Listed, spread_out
from .drive import SearchResult, search
from .feasible import SpaceExhausted
from .optuna_search import OptunaSearcher
from .path import PathElement, Score, path_from_json, path_to_json, reselect
from .progressive import Scorer, walk_down
from .progressive_searcher import ProgressiveSearcher
from .recorder import Evaluator
from .searcher import SEARCHERS, Searcher, make_searcher

__all__ = [
    "SEARCHERS",
    "Budget",
    "Evaluator",
    "Listed",
    "OptunaSearcher",
    "PathElement",
    "ProgressiveSearcher",
    "Score",
    "Scorer",
    "SearchResult",
    "Searcher",
    "SpaceExhausted",
    "make_searcher",
    "path_from_json",
    "path_to_json",
    "reselect",
    "search",
    "spread_out",
    "walk_down",
]
