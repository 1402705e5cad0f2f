"""Who proposes the next sub-net, and the loop that asks, evaluates and records; no torch."""

from .budget import Budget
from .claims import Claims
from .controls import Listed, spread_out
from .drive import SearchResult, search
from .feasible import SpaceExhausted
from .optuna_search import OptunaSearcher
from .path import PathElement, Score, path_from_json, path_to_json, reselect
from .pool import EvaluatorFactory, Pool, Workers
from .progressive import Scorer, walk_down
from .progressive_searcher import ProgressiveSearcher
from .racing import RacedEvaluator, Racing, look_sizes
from .recorder import Answer, Evaluator, TooManyFailures
from .searcher import SEARCHERS, Searcher, make_searcher
from .shown import images_told
from .study_claims import StudyClaims

__all__ = [
    "SEARCHERS",
    "Answer",
    "Budget",
    "Claims",
    "Evaluator",
    "EvaluatorFactory",
    "Listed",
    "OptunaSearcher",
    "PathElement",
    "Pool",
    "ProgressiveSearcher",
    "RacedEvaluator",
    "Racing",
    "Score",
    "Scorer",
    "SearchResult",
    "Searcher",
    "SpaceExhausted",
    "StudyClaims",
    "TooManyFailures",
    "Workers",
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
