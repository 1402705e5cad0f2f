"""Limits that only an evaluation can show to be met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search_spaces import InvalidInput, nearest_names
from subnet_search.record import Objective

Floats = NDArray[np.float64]
MARGIN = 0.1  # of the way from the best value to the bound, by which the reference lies beyond the bound


@dataclass(frozen=True)
class Bounds:
    """The worst losses that are allowed.

    Attributes:
        most: `[num_objectives]`, infinite where everything is allowed.
    """

    most: Floats

    @classmethod
    def of(cls, objectives: Sequence[Objective], limits: Mapping[str, float] | None) -> Bounds:
        """From the worst allowed values by name of the objective.

        Raises:
            InvalidInput: for a name that is no objective's, or a bound that is not a number.
        """
        names = [objective.name for objective in objectives]
        for name, bound in (limits or {}).items():
            if name not in names:
                raise InvalidInput(
                    f"a bound must be on one of the objectives {', '.join(names)}, got {name!r}"
                    f"{nearest_names(name, names)}"
                )
            if np.isnan(bound):
                raise InvalidInput(f"the bound on {name} must be a number, got {bound!r}")
        given = limits or {}
        return cls(np.array([o.loss(given[o.name]) if o.name in given else np.inf for o in objectives]))

    @property
    def places(self) -> list[int]:
        """Of the objectives that have a bound."""
        return np.flatnonzero(np.isfinite(self.most)).tolist()

    def met(self, losses: Floats) -> NDArray[np.bool_]:
        """Which rows of `[num_rows, num_objectives]` are allowed; none with NaN is."""
        return np.asarray((losses <= self.most).all(axis=1) & ~np.isnan(losses).any(axis=1))

    def reference(self, losses: Floats) -> Floats:
        """Up to where hypervolume counts `[num_objectives]`: the worst of `losses`, but not far beyond a bound.

        A little beyond, so that what just meets a bound is worth something; so, too, where all losses are equal.
        """
        worst, best = losses.max(axis=0), losses.min(axis=0)
        worst = np.where(worst > best, worst, worst + MARGIN * np.maximum(np.abs(worst), 1.0))
        beyond = self.most + MARGIN * np.maximum(self.most - best, 0)
        return np.asarray(np.where(np.isfinite(self.most), np.minimum(worst, beyond), worst))
