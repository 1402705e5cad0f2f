"""Which points no other point beats."""

from __future__ import annotations

import numpy as np


def non_dominated(losses: np.ndarray) -> np.ndarray:
    """Marks the rows that no other row beats; smaller is better.

    Args:
        losses: `[num_points, num_objectives]`.

    Returns:
        Booleans `[num_points]`; of equal rows all or none are kept.
    """
    losses = np.asarray(losses)
    keep = np.ones(len(losses), dtype=bool)
    for i, row in enumerate(losses):  # one row at a time: memory stays [num_points, num_objectives]
        if keep[i]:
            keep &= (losses < row).any(axis=1) | (losses == row).all(axis=1)
    return keep
