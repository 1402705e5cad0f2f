"""How much of the space in front of a reference point a set of points dominates."""

from __future__ import annotations

import numpy as np

from .dominance import non_dominated


def hypervolume(losses: np.ndarray, reference: np.ndarray) -> float:
    """The volume dominated by `losses` and bounded by `reference`; smaller losses are better.

    Exact for any number of objectives: two by a sweep, more by slicing along the last one, O(n^(d-1) log n).
    Points that are not better than the reference in every objective add nothing.

    Args:
        losses: `[num_points, num_objectives]`.
        reference: `[num_objectives]`.

    Source:
        Zitzler, Thiele, "Multiobjective Evolutionary Algorithms: A Comparative Case Study and the Strength
        Pareto Approach", 1999, doi:10.1109/4235.797969; slicing after While et al., 2006,
        doi:10.1109/TEVC.2005.851275.
    """
    losses = np.asarray(losses, dtype=np.float64).reshape(-1, len(reference))
    return _volume(losses[(losses < reference).all(axis=1)], np.asarray(reference, dtype=np.float64))


def _volume(points: np.ndarray, reference: np.ndarray) -> float:
    if not len(points):
        return 0.0
    if len(reference) == 1:
        return float(reference[0] - points.min())
    if len(reference) == 2:
        return _area(points, reference)
    points = np.unique(points[non_dominated(points)], axis=0)
    points = points[np.argsort(points[:, -1], kind="stable")]
    depths = np.diff(np.append(points[:, -1], reference[-1]))  # [num_points]
    return sum(
        float(depth) * _volume(points[: end + 1, :-1], reference[:-1])
        for end, depth in enumerate(depths)
        if depth > 0
    )


def _area(points: np.ndarray, reference: np.ndarray) -> float:
    x, y = points[np.lexsort((points[:, 1], points[:, 0]))].T
    lowest = np.minimum.accumulate(y)
    widths = np.diff(np.append(x, reference[0]))
    return float(widths @ (reference[1] - lowest))
