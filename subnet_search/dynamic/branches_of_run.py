"""The network in branches that a run trained, ready for an anytime loop."""

from __future__ import annotations

from pathlib import Path

import torch

from search_spaces import InvalidInput
from subnet_search.elastic import make_elastic
from subnet_search.elastic.branches import TriangularNet, make_triangular
from subnet_search.elastic.extraction import cut_out
from subnet_search.models import load_model, load_weights
from subnet_search.recipe import parse_recipe
from subnet_search.record import open_run
from subnet_search.record.run import SETTINGS

TRAINED = "supernet.safetensors"


def load_branches(folder: str | Path) -> TriangularNet:
    """The trained network of a run with `[elastic] branches`, in evaluation mode; `rows(x)` gives one after the other.

    Batch norms have the running statistics of the training, which serve every number of branches.

    Args:
        folder: the run's; it may be at work.

    Raises:
        InvalidInput: no run folder, a run without branches, or one whose supernet is not trained yet.
    """
    with open_run(folder, write=False) as run:
        recipe = parse_recipe(run.read(SETTINGS).decode(), f"{run.folder}/{SETTINGS}")
        if recipe.elastic.branches is None:
            raise InvalidInput(
                f"run {run.folder} is not in branches; begin one with [elastic] branches = K in its recipe"
            )
        if not run.has(TRAINED):
            raise InvalidInput(
                f"the supernet of run {run.folder} is not trained yet; go on with: subnet-search resume {run.folder}"
            )
        shape = run.read_json("coverage.json")["branches"]["input"]
        model = load_model(recipe.model.name, None, dict(recipe.model.options)).eval()
        example = torch.zeros(1, *shape)
        supernet = make_elastic(model, example, recipe.elastic).eval()
        load_weights(supernet.model, run.verify(TRAINED))
    whole = cut_out(supernet, supernet.space.largest())
    return make_triangular(whole, example, recipe.elastic.branches).eval()
