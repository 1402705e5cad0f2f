"""What was seen: objectives, evaluations, fronts, and the run folder with its journal; no torch."""

from .dominance import non_dominated
from .hypervolume import hypervolume
from .images import Images, Partial
from .journal import Journal
from .objective import Evaluation, Objective, check_objectives, check_values
from .pareto import ParetoFront, losses_of, worst_values
from .reranking import agreement, rerank
from .run import Run, create_run, open_run
from .tradeoff import knee, prices

__all__ = [
    "Evaluation",
    "Images",
    "Journal",
    "Objective",
    "ParetoFront",
    "Partial",
    "Run",
    "agreement",
    "check_objectives",
    "check_values",
    "create_run",
    "hypervolume",
    "knee",
    "losses_of",
    "non_dominated",
    "open_run",
    "prices",
    "rerank",
    "worst_values",
]
