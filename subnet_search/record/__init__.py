"""What was seen: objectives, evaluations, fronts, and the run folder with its journal; no torch."""

from .dominance import non_dominated
from .hypervolume import hypervolume
from .journal import Journal
from .objective import Evaluation, Objective, check_objectives
from .pareto import ParetoFront, losses_of, worst_values
from .run import Run, create_run, open_run

__all__ = [
    "Evaluation",
    "Journal",
    "Objective",
    "ParetoFront",
    "Run",
    "check_objectives",
    "create_run",
    "hypervolume",
    "losses_of",
    "non_dominated",
    "open_run",
    "worst_values",
]
