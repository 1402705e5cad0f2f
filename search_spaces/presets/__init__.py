"""Ready-made ways through a space; numpy only."""

from .branches import BRANCH_KNOB, branch_space
from .depths import SkipPath, SkipPaths, skip_paths
from .ties import tied_costs
from .widths import Ladders, ladders, steps_down

__all__ = [
    "BRANCH_KNOB",
    "Ladders",
    "SkipPath",
    "SkipPaths",
    "branch_space",
    "ladders",
    "skip_paths",
    "steps_down",
    "tied_costs",
]
