"""Which training step a recipe's tables ask for."""

from __future__ import annotations

from subnet_search.elastic.supernet import Supernet
from subnet_search.recipe import TrainTable
from subnet_search.training.bootstrap import BootstrapStep
from subnet_search.training.branches import BranchStep
from subnet_search.training.sampling import EachKnob, UniformWidths
from subnet_search.training.sandwich import SandwichStep
from subnet_search.training.skip_paths import SkipPathStep
from subnet_search.training.step import Step


def step_of(table: TrainTable, supernet: Supernet) -> Step:
    """The step for a supernet: of branches or sub-paths, where it has them; else the sandwich rule or bootstrapping.

    Args:
        table: [train] of a recipe.
        supernet: that is to be trained.
    """
    if supernet.branches is not None:
        return BranchStep(table.num_random, table.distill)
    if supernet.sub_paths is not None:
        return SkipPathStep(supernet.sub_paths, distill=table.distill)
    sampling = UniformWidths(table.least_width) if table.sampling == "uniform" else EachKnob()
    if table.method == "bootstrap":
        return BootstrapStep(table.num_random, table.decay, table.ensemble, table.views, sampling)
    return SandwichStep(num_random=table.num_random, distill=table.distill, sampling=sampling)
