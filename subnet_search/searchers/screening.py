"""Which candidates a guided search looks at closely: the most promising of all, or of what was bred from the front."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from subnet_search.record import non_dominated

from .beliefs import Beliefs, Described, Ints, Outlook, Seen
from .bounds import Bounds
from .candidates import Candidates, distinct
from .improvement import Improvement

Floats = NDArray[np.float64]

SHORTLIST = 3_000  # of all candidates, for which uncertainty is computed
SAMPLE, SURVIVORS, GENERATIONS = 1_000, 300, 4  # where a space is too large to be listed
BINS = 10  # of cost, from each of which survive as many


class Screen:
    """Narrows candidates down by what they are expected to be worth.

    Args:
        candidates: makes them.
        beliefs: what is held true of them.
        bounds: the losses that are allowed.
    """

    def __init__(self, candidates: Candidates, beliefs: Beliefs, bounds: Bounds) -> None:
        self._candidates, self._beliefs, self._bounds = candidates, beliefs, bounds

    def __call__(
        self, seen: Seen, known: set[bytes], improvement: Improvement | None, rng: np.random.Generator
    ) -> Described:
        """Those worth a close look.

        Args:
            seen: what was evaluated.
            known: bytes of rows that are not to be proposed.
            improvement: over the front; None while nothing is known to meet the bounds.
            rng: for breeding.
        """
        if self._candidates.everything is None:
            return self._bred(seen, known, improvement, rng)
        left = self._all.of(~self._candidates.listed(known))
        if len(left.rows) <= SHORTLIST:
            return left
        gains = _gains(improvement, self._beliefs.hopes(left))
        return left.of(np.sort(np.argpartition(-gains, SHORTLIST)[:SHORTLIST]))

    @cached_property
    def _all(self) -> Described:
        assert self._candidates.everything is not None
        return self._beliefs.described(self._candidates.everything)

    def _bred(
        self, seen: Seen, known: set[bytes], improvement: Improvement | None, rng: np.random.Generator
    ) -> Described:
        """Some generations, beginning with the front, of what is expected to improve it most."""
        good = np.flatnonzero(seen.full & self._bounds.met(seen.losses))
        good = good if len(good) else np.flatnonzero(seen.full)
        front = seen.rows[good[non_dominated(seen.losses[good])]]
        rows = np.concatenate(
            [self._candidates.random(SAMPLE, rng), self._candidates.children(front, SAMPLE, rng)]
        )
        pool = np.empty((0, rows.shape[1]), dtype=np.int64)
        gains, costs = np.empty(0), np.empty(0)
        for _ in range(GENERATIONS):
            rows = _without(distinct(rows), known | {row.tobytes() for row in pool})
            if not len(rows):
                break
            outlook = self._beliefs.outlook(self._beliefs.described(rows))
            pool = np.concatenate([pool, rows])
            gains = np.concatenate([gains, _gains(improvement, outlook)])
            costs = np.concatenate([costs, _coordinate(outlook)])
            kept = _best_of_bins(gains, costs)
            pool, gains, costs = pool[kept], gains[kept], costs[kept]
            rows = self._candidates.children(pool, SAMPLE, rng) if len(pool) else rows[:0]
        return self._beliefs.described(pool)


def _gains(improvement: Improvement | None, outlook: Outlook) -> Floats:
    """What candidates are worth `[num_candidates]`; without an improvement: how probably they are allowed."""
    if improvement is None:
        return outlook.log_chances
    return improvement(outlook.losses, outlook.weights) * outlook.chances


def _coordinate(outlook: Outlook) -> Floats:
    """Along which candidates are kept diverse: the first objective known exactly, else the first."""
    places = [place for place, weights in enumerate(outlook.weights) if len(weights) == 1]
    return np.asarray(outlook.expected[:, places[0] if places else 0])


def _without(rows: Ints, known: set[bytes]) -> Ints:
    return rows[[row.tobytes() not in known for row in rows]]


def _best_of_bins(gains: Floats, costs: Floats) -> Ints:
    """The most promising candidates of each part of the range of costs `[num_kept]`."""
    order = np.argsort(costs, kind="stable")
    kept = [
        part[np.argsort(-gains[part], kind="stable")[: SURVIVORS // BINS]]
        for part in np.array_split(order, BINS)
    ]
    return np.concatenate(kept)
