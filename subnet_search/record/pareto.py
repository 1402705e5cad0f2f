"""The sub-nets that no other one beats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from search_spaces import InvalidInput, nearest_names

from .dominance import non_dominated
from .hypervolume import hypervolume
from .objective import Evaluation, Objective, check_objectives


@dataclass(frozen=True, slots=True)
class ParetoFront:
    """The non-dominated evaluations, sorted by the first objective's value; make it with `ParetoFront.of`."""

    objectives: tuple[Objective, ...]
    members: tuple[Evaluation, ...]

    @classmethod
    def of(cls, objectives: Sequence[Objective], evaluations: Iterable[Evaluation]) -> ParetoFront:
        """The front of `evaluations`: failed and stopped ones are left out, a config that came twice counts once.

        Raises:
            InvalidInput: when an evaluation has another number of values than there are objectives.
        """
        objectives = check_objectives(objectives)
        candidates = [evaluation for evaluation in evaluations if evaluation.ok and evaluation.in_full]
        losses = losses_of(objectives, candidates)
        best: dict[str, Evaluation] = {}
        for i in np.flatnonzero(non_dominated(losses)):
            best.setdefault(candidates[i].config.key, candidates[i])
        return cls(objectives, tuple(sorted(best.values(), key=lambda e: (e.values, e.config.key))))

    def __iter__(self) -> Iterator[Evaluation]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def hypervolume(self, reference: Mapping[str, float]) -> float:
        """The volume between the front and `reference`, in the product of the objectives' units.

        Args:
            reference: one value per objective name, such as `worst_values` gives; members that are not
                better than it in every objective add nothing.

        Raises:
            InvalidInput: when `reference` lacks an objective or names another one.
        """
        names = [objective.name for objective in self.objectives]
        if set(reference) != set(names):
            odd = sorted(set(reference) ^ set(names))
            hint = nearest_names(odd[0], names)
            raise InvalidInput(f"a reference needs a value for each of {names}, got {dict(reference)}{hint}")
        bound = np.array([objective.loss(reference[objective.name]) for objective in self.objectives])
        return hypervolume(losses_of(self.objectives, self.members), bound)


def losses_of(objectives: Sequence[Objective], evaluations: Sequence[Evaluation]) -> np.ndarray:
    """The values as losses, smaller is better: `[num_evaluations, num_objectives]`."""
    for evaluation in evaluations:
        if len(evaluation.values) != len(objectives):
            raise InvalidInput(
                f"an evaluation needs one value for each of {[o.name for o in objectives]}, "
                f"got {evaluation.values} for config {evaluation.config.key}"
            )
    rows = [[o.loss(v) for o, v in zip(objectives, e.values, strict=True)] for e in evaluations]
    return np.array(rows, dtype=np.float64).reshape(len(evaluations), len(objectives))


def worst_values(objectives: Sequence[Objective], evaluations: Iterable[Evaluation]) -> dict[str, float]:
    """The worst value measured in full of every objective, a reference for hypervolumes; empty if there is none."""
    seen = [evaluation for evaluation in evaluations if evaluation.ok and evaluation.in_full]
    if not seen:
        return {}
    worst = losses_of(objectives, seen).max(axis=0)
    return {o.name: o.loss(float(loss)) for o, loss in zip(objectives, worst, strict=True)}
