"""The sub-nets a guided search looks at without evaluating them: all of a small space, or bred from good ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from search_spaces import SubnetConfig

from .controls import spread_out
from .feasible import Feasible

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MOST_LISTED = 65_536  # assignments of knobs; a space of more is not listed
SPREAD = 0.25  # of the shares of one random sub-net's knobs around their common share
ROUNDS, SHRINK = 12, 0.7  # how often a random sub-net that is too large is drawn again, and how much smaller
MOST_CHANGED = 3  # knobs of a child
JITTER = 0.01  # of the range of costs, within which sub-nets are spread alike


@dataclass(frozen=True)
class Candidates:
    """Makes canonical rows `[num_rows, num_knobs]` inside the limits, many at a time."""

    feasible: Feasible

    @cached_property
    def everything(self) -> Ints | None:
        """All feasible rows, or None where the space is too large to list them."""
        knobs = self.feasible.space.knobs
        if prod(len(knob.choices) for knob in knobs) > MOST_LISTED:
            return None
        grids = np.meshgrid(*(np.array(knob.choices) for knob in knobs), indexing="ij")
        rows = np.stack([grid.ravel() for grid in grids], axis=1)
        rows = distinct(self.feasible.space.canonical_rows(rows))
        feasible: Ints = rows[self.feasible.allowed_rows(rows)]
        return feasible

    def listed(self, known: Iterable[bytes]) -> NDArray[np.bool_]:
        """Marks in `everything` the rows whose bytes are `known`."""
        marks = np.zeros(len(self._places), dtype=bool)
        marks[[self._places[row] for row in known if row in self._places]] = True
        return marks

    @cached_property
    def _places(self) -> dict[bytes, int]:
        rows = self.everything
        return {} if rows is None else {row.tobytes(): place for place, row in enumerate(rows)}

    def random(self, count: int, rng: np.random.Generator) -> Ints:
        """Sub-nets of all sizes: every one has a share around which its knobs lie, drawn evenly.

        Knobs drawn independently give sub-nets of middling cost only. What does not meet the limits is drawn again
        with a smaller share; what never does is left out, but the smallest sub-net is always there.
        """
        share = rng.random(count)
        rows = self._around(share, rng)
        wrong = np.flatnonzero(~self.feasible.allowed_rows(rows))
        for _ in range(ROUNDS):
            if not len(wrong):
                break
            share[wrong] *= SHRINK
            rows[wrong] = self._around(share[wrong], rng)
            wrong = wrong[~self.feasible.allowed_rows(rows[wrong])]
        ends = [self.feasible.space.smallest(), self.feasible.repair(self.feasible.space.largest())]
        ends = [config for config in ends if self.feasible.allows(config)]
        return distinct(np.concatenate([self.feasible.space.encode(ends), np.delete(rows, wrong, axis=0)]))

    def _around(self, share: Floats, rng: np.random.Generator) -> Ints:
        size = len(share), len(self._counts)
        near = share[:, None] + SPREAD * rng.standard_normal(size)
        near = np.where(self._unordered, rng.random(size), near)
        places = np.clip(np.floor(near * self._counts), 0, self._counts - 1).astype(int)
        return self.feasible.space.canonical_rows(self._choices[np.arange(size[1]), places])

    def children(self, parents: Ints, count: int, rng: np.random.Generator) -> Ints:
        """Mixtures of two parents, of which up to three knobs are changed; those that meet the limits."""
        knobs = self.feasible.space.knobs
        one, two = parents[rng.integers(0, len(parents), (2, count))]
        mixed = np.where(rng.random((count, 1)) < 0.5, rng.random(one.shape) < 0.5, True)
        rows = np.where(mixed, one, two)
        often = rng.integers(1, MOST_CHANGED, count, endpoint=True)[:, None] / len(knobs)
        self._change(rows, rng.random(rows.shape) < often, rng)
        rows = distinct(self.feasible.space.canonical_rows(rows))
        feasible: Ints = rows[self.feasible.allowed_rows(rows)]
        return feasible

    def _change(self, rows: Ints, changed: NDArray[np.bool_], rng: np.random.Generator) -> None:
        """Gives marked knobs another choice: a neighbour or, half of the time and if they are unordered, any."""
        row, column = np.nonzero(changed & (self._counts > 1))
        choices, counts = self._choices[column], self._counts[column]
        places = (choices == rows[row, column][:, None]).argmax(axis=1)
        anywhere = (places + 1 + np.floor(rng.random(len(row)) * (counts - 1)).astype(int)) % counts
        steps = np.where(rng.random(len(row)) < 0.5, -1, 1)
        beside = np.where((places + steps < 0) | (places + steps >= counts), places - steps, places + steps)
        jump = self._unordered[column] | (rng.random(len(row)) < 0.5)
        rows[row, column] = choices[np.arange(len(row)), np.where(jump, anywhere, beside)]

    @cached_property
    def _counts(self) -> Ints:
        return np.array([len(knob.choices) for knob in self.feasible.space.knobs])

    @cached_property
    def _unordered(self) -> NDArray[np.bool_]:
        return np.array([knob.kind == "choice" for knob in self.feasible.space.knobs])

    @cached_property
    def _choices(self) -> Ints:
        """`[num_knobs, most choices]`, short rows filled with their last choice."""
        most = int(self._counts.max())
        rows = [k.choices + (k.largest,) * (most - len(k.choices)) for k in self.feasible.space.knobs]
        return np.array(rows, dtype=np.int64)

    def spread(self, rows: Ints, cost: Floats, count: int, rng: np.random.Generator) -> list[SubnetConfig]:
        """Up to `count` different ones of `rows` whose costs `[num_rows]` are evenly spread, the two ends first."""
        targets = np.linspace(cost.min(), cost.max(), min(count, len(rows)))
        off = JITTER * (cost.max() - cost.min()) * rng.random(len(rows))
        picks: list[int] = []
        for target in targets:
            away = np.abs(cost - target) + off
            away[picks] = np.inf
            picks.append(int(np.argmin(away)))
        return spread_out(self.feasible.space.decode(rows[picks]))


def distinct(rows: Ints) -> Ints:
    """Each row once, the first of equals; by a random sum of each, as comparing rows takes long."""
    weights = np.random.default_rng(0).integers(1, 2**62, rows.shape[1])
    _, first = np.unique(rows @ weights, return_index=True)  # overflows alike for equal rows
    return np.asarray(rows[np.sort(first)])
