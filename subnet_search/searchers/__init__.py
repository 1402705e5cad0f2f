"""Who proposes the next sub-net, and the loop that asks, evaluates and records; no torch."""

from .budget import Budget
from .controls import Listed, spread_out
from .drive import SearchResult, images_told, search
from .feasible import SpaceExhausted
from .optuna_search import OptunaSearcher
from .path import PathElement, Score, path_from_json, path_to_json, reselect
from .progressive import Scorer, walk_down
from .progressive_searcher import ProgressiveSearcher
from .racing import RacedEvaluator, Racing, look_sizes
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
    "RacedEvaluator",
    "Racing",
    "Score",
    "Scorer",
    "SearchResult",
    "Searcher",
    "SpaceExhausted",
    "images_told",
    "look_sizes",
    "make_searcher",
    "path_from_json",
    "path_to_json",
    "reselect",
    "search",
    "spread_out",
    "walk_down",
]
