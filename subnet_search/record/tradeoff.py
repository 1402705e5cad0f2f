"""Where a front bends, and what each step along it costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from search_spaces import InvalidInput, nearest_names

from .objective import Evaluation, Objective
from .pareto import ParetoFront, losses_of

SMALLEST_BEND = 1e-9  # of the range of quality; less is rounding


@dataclass(frozen=True, slots=True)
class Knee:
    """The member after which more cost buys least, and how far it stands above the straight line of the ends.

    `above_chord` is in the unit of the quality: 3.0 says that this member is 3 points better than a mixture of
    the cheapest and the best member that costs the same.
    """

    member: Evaluation
    above_chord: float


@dataclass(frozen=True, slots=True)
class Step:
    """From one member of a front of two objectives to the next dearer one; both differences are positive."""

    cheaper: Evaluation
    dearer: Evaluation
    extra_cost: float  # in the unit of the cost
    gain: float  # in the unit of the quality

    @property
    def gain_per_cost(self) -> float:
        """The gain for one more unit of cost."""
        return self.gain / self.extra_cost

    @property
    def cost_per_gain(self) -> float:
        """The cost of one more unit of quality."""
        return self.extra_cost / self.gain


def knee(front: ParetoFront, cost: str | None = None, quality: str | None = None) -> Knee | None:
    """The member that stands farthest from the straight line between the cheapest and the best one.

    Both objectives are scaled to 0..1 between these two ends, so that units do not matter; the ends themselves
    do: without its smallest sub-nets a front bends elsewhere. Of equal members the cheapest is taken.

    Source:
        Das, "On characterizing the 'knee' of the Pareto curve based on Normal-Boundary Intersection", 1999,
        doi:10.1007/BF01195985. The same point as that of Satopaa et al., "Finding a 'Kneedle' in a Haystack",
        2011, doi:10.1109/ICDCSW.2011.20, without their smoothing and sensitivity: a front is monotone already.

    Args:
        front: of two objectives or more; the others than these two are left out of account.
        cost, quality: names of objectives; by default the first one to be low and the first one to be high.

    Returns:
        None where nothing bends outwards: fewer than three different members, all on or below that line, or no
        two such objectives.

    Raises:
        InvalidInput: `cost` or `quality` is no objective of the front, or both are the same.
    """
    members, losses = _curve(front, cost, quality)
    if len(members) < 3:
        return None
    (cheapest, worst), (dearest, best) = losses[0], losses[-1]
    chord = worst + (best - worst) * (losses[:, 0] - cheapest) / (dearest - cheapest)  # [num_members]
    above = chord - losses[:, 1]
    place = int(above.argmax())
    if above[place] <= SMALLEST_BEND * (worst - best):
        return None
    return Knee(members[place], float(above[place]))


def prices(front: ParetoFront, cost: str | None = None, quality: str | None = None) -> list[Step]:
    """The steps between neighbours of the front of two objectives, by rising cost; arguments as in `knee`.

    Returns:
        One step less than there are different members; empty where no two objectives can be traded.
    """
    members, losses = _curve(front, cost, quality)
    rises = np.abs(np.diff(losses, axis=0)).tolist()  # [num_members - 1, 2]
    return [Step(members[i], members[i + 1], *rise) for i, rise in enumerate(rises)]


def _curve(
    front: ParetoFront, cost: str | None, quality: str | None
) -> tuple[tuple[Evaluation, ...], np.ndarray]:
    """The members that none beats in these two objectives, once for each place, and their losses `[n, 2]`.

    Losses rise in the first column and fall in the second.
    """
    sides = (_objective(front, cost, "min"), _objective(front, quality, "max"))
    if sides[0] is None or sides[1] is None:
        return (), np.empty((0, 2))
    pair: tuple[Objective, Objective] = (sides[0], sides[1])
    if pair[0].name == pair[1].name:
        raise InvalidInput(f"cost and quality must be two objectives, got {pair[0].name!r} for both")
    columns = [front.objectives.index(objective) for objective in pair]
    whole = {member.config.key: member for member in front}
    flat = ParetoFront.of(
        pair, [Evaluation(m.config, tuple(m.values[column] for column in columns)) for m in front]
    )
    losses, places = np.unique(losses_of(pair, flat.members), axis=0, return_index=True)
    return tuple(whole[flat.members[place].config.key] for place in places), losses.reshape(-1, 2)


def _objective(front: ParetoFront, name: str | None, goal: str) -> Objective | None:
    """The objective called `name`, or the first one with this goal."""
    if name is None:
        return next((objective for objective in front.objectives if objective.goal == goal), None)
    names = [objective.name for objective in front.objectives]
    if name not in names:
        hint = nearest_names(name, names)
        raise InvalidInput(f"a front of {', '.join(names)} has no objective {name!r}{hint}")
    return front.objectives[names.index(name)]
