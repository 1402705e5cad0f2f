"""How much hypervolume a sub-net is expected to add, and which several ones to take together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from subnet_search.record import non_dominated

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CHUNK_NUMBERS = 4_000_000
MOST_POINTS = {1: 1, 2: 400, 3: 40, 4: 14}  # of a front; more would make too many boxes
LOOKS = 64  # candidates that are looked at anew together


class Improvement:
    """Expected hypervolume improvement over a front, for objectives that are independent of each other.

    The region that no point of the front dominates falls apart into boxes, and what a point adds is the sum of what
    it cuts out of each: a product over objectives, whose mean is the product of means. So one mean for each
    candidate, objective and edge of a box suffices: E[(edge - loss)+], a weighted sum over a few values of the loss
    (one where it is known exactly). Nothing is sampled.

    Source:
        Yang, Emmerich, Deutz, Baeck, "Efficient computation of expected hypervolume improvement using box
        decomposition algorithms", 2019, doi:10.1007/s10898-019-00798-7; slices instead of their decomposition,
        and quadrature, as warped losses are not normally distributed.

    Args:
        front: losses `[num_points, num_objectives]`, dominated ones too; of many the outermost and evenly chosen
            others count.
        reference: `[num_objectives]`; what is worse in any objective adds nothing.
    """

    def __init__(self, front: Floats, reference: Floats) -> None:
        inside = front[(front < reference).all(axis=1)]
        inside = np.unique(inside[non_dominated(inside)], axis=0)
        most = MOST_POINTS.get(len(reference), 8)
        if len(inside) > most:
            inside = inside[np.linspace(0, len(inside) - 1, most).round().astype(int)]
        self._edges = [
            np.concatenate([[-np.inf], np.unique(inside[:, j]), reference[j : j + 1]])
            for j in range(len(reference))
        ]
        places = [np.searchsorted(self._edges[j], inside[:, j]) for j in range(len(reference))]
        found = _boxes(np.stack(places, axis=1), [len(edges) - 1 for edges in self._edges])
        self._low, self._high = np.array(found).transpose(1, 0, 2)  # [num_boxes, num_objectives] each

    def __call__(self, losses: Sequence[Floats], weights: Sequence[Floats]) -> Floats:
        """Expected improvements `[num_candidates]`.

        Args:
            losses: for each objective possible values `[num_candidates, num_values]`.
            weights: for each objective their probabilities `[num_values]`.
        """
        found = np.empty(len(losses[0]))
        step = max(1, CHUNK_NUMBERS // len(self._low))
        for start in range(0, len(found), step):
            part = slice(start, start + step)
            product = np.ones((len(found[part]), len(self._low)))
            for j, edges in enumerate(self._edges):
                below = np.zeros((len(product), len(edges)))  # E[(edge - loss)+]; 0 at minus infinity
                for values, weight in zip(losses[j][part].T, weights[j], strict=True):
                    below[:, 1:] += weight * np.maximum(edges[1:] - values[:, None], 0)
                product *= below[:, self._high[:, j]] - below[:, self._low[:, j]]
            found[part] = product.sum(axis=1)
        return found


def _boxes(points: Ints, last: Sequence[int]) -> list[list[tuple[int, ...]]]:
    """Disjoint boxes that fill what no point dominates: each a pair of corners, in numbers of edges.

    Sliced along the last objective: between two points' edges only the points below dominate anything.
    """
    if len(last) == 1:
        return [[(0,), (min([last[0], *points[:, 0].tolist()]),)]]
    depths = [0, *sorted(set(points[:, -1].tolist())), last[-1]]
    found = []
    for low, high in itertools.pairwise(depths):
        for a, b in _boxes(points[points[:, -1] <= low][:, :-1], last[:-1]):
            found.append([(*a, low), (*b, high)])
    return found


def pick_batch(
    losses: Sequence[Floats],
    weights: Sequence[Floats],
    chances: Floats,
    front: Floats,
    reference: Floats,
    count: int,
) -> list[int]:
    """Candidates to evaluate together, each chosen as if those before it had come out as expected.

    What is already chosen (or evaluated elsewhere, and then part of `front` with its expected losses) can only lower
    what another candidate adds: so gains found earlier are bounds, and few have to be looked at anew for each choice.
    Ends early when nothing is expected to add anything.

    Args:
        losses, weights: as for `Improvement`.
        chances: how probable it is that a candidate counts at all `[num_candidates]`.
        front: losses known or expected `[num_points, num_objectives]`.
        reference: `[num_objectives]`.
        count: how many to take at most.

    Returns:
        Numbers of candidates, the best first.
    """
    expected = np.stack([v @ w for v, w in zip(losses, weights, strict=True)], axis=1)
    improvement = Improvement(front, reference)
    gains = improvement(losses, weights) * chances
    chosen: list[int] = []
    while len(chosen) < min(count, len(gains)):
        fresh = np.full(len(gains), not chosen)
        while not fresh[best := int(np.argmax(gains))]:
            stale = np.where(fresh, -np.inf, gains)
            again = np.argpartition(-stale, min(LOOKS, len(stale) - 1))[:LOOKS]
            again = again[np.isfinite(stale[again])]
            gains[again] = improvement([values[again] for values in losses], weights) * chances[again]
            fresh[again] = True
        if gains[best] <= 0:
            break
        chosen.append(best)
        gains[best] = -np.inf
        front = np.concatenate([front, expected[best : best + 1]])
        improvement = Improvement(front, reference)
    return chosen
