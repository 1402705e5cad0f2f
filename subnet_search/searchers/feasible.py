"""The sub-nets a search may propose: canonical, inside the cost limits, and not proposed before."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from search_spaces import (
    CostTable,
    InvalidInput,
    SearchSpace,
    SubnetConfig,
    SubnetSearchError,
    check_limits,
    project,
    within_limits,
)

TRIES = 50  # random looks for an unseen config before the feasible set is walked through in order


class SpaceExhausted(SubnetSearchError):
    """Every feasible sub-net has been proposed; there is nothing left to ask for."""


def check_seed(seed: int) -> int:
    """The seed itself; `InvalidInput` unless it is a whole number that fits in 32 bits."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InvalidInput(f"the seed of a search must be a whole number from 0 to 2^32 - 1, got {seed!r}")
    return seed


@dataclass(frozen=True)
class Feasible:
    """A space and its limits on costs; `limits` are upper bounds by cost name.

    Raises:
        InvalidInput: for limits without a cost table, unknown costs, or limits that no sub-net meets.
    """

    space: SearchSpace
    costs: CostTable | None = None
    limits: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.limits:
            if self.costs is None:
                raise InvalidInput(
                    f"limits on {', '.join(self.limits)} need the space's cost table: costs=..."
                )
            check_limits(self.space, self.costs, self.limits)

    def repair(self, config: Mapping[str, int]) -> SubnetConfig:
        """The canonical config itself when it is feasible, else its projection; always the same one."""
        if not self.limits or self.costs is None:
            return self.space.canonical(config)
        return project(self.space, self.costs, self.limits, config)

    def allows(self, config: SubnetConfig) -> bool:
        """Whether a canonical config meets the limits."""
        return bool(self.allowed_rows(self.space.encode([config]))[0])

    def unseen(self, near: SubnetConfig, seen: Container[str], rng: np.random.Generator) -> SubnetConfig:
        """A feasible config whose key is not in `seen`, close to `near` if chance finds one there.

        Raises:
            SpaceExhausted: when there is none. (Certain where costs grow with every knob, as ours do: then each
            feasible config is reached from the smallest one by single steps through feasible ones.)
        """
        neighbours = (self.space.mutate(near, rng) for _ in range(TRIES))
        anywhere = (self.space.sample(rng) for _ in range(TRIES))
        for config in itertools.chain(map(self.repair, neighbours), map(self.repair, anywhere), self._all()):
            if config.key not in seen:
                return config
        raise SpaceExhausted(
            "every feasible sub-net was proposed already; widen the space or raise the limits"
        )

    def _all(self) -> Iterator[SubnetConfig]:
        start = self.space.encode([self.space.smallest()])[0]
        queue, found = deque([start]), {start.tobytes()}
        while queue:
            row = queue.popleft()
            yield self.space.decode(row[None])[0]
            for neighbour in self._neighbours(row):
                if (name := neighbour.tobytes()) not in found:
                    found.add(name)
                    queue.append(neighbour)

    def _neighbours(self, row: np.ndarray) -> np.ndarray:
        """Feasible rows `[num_rows, num_knobs]` with one other value; what it wakes up starts smallest."""
        knobs = self.space.knobs
        rows = np.repeat(row[None], sum(len(knob.choices) for knob in knobs), axis=0)
        steps = ((column, choice) for column, knob in enumerate(knobs) for choice in knob.choices)
        for changed, (column, choice) in zip(rows, steps, strict=True):
            changed[column] = choice
        rows = self.space.canonical_rows(rows)
        woken = self.space.active_rows(rows) & ~self.space.active_rows(row[None])
        rows = self.space.canonical_rows(np.where(woken, [knob.smallest for knob in knobs], rows))
        feasible: np.ndarray = rows[self.allowed_rows(rows)]
        return feasible

    def allowed_rows(self, rows: np.ndarray) -> np.ndarray:
        """Which canonical rows `[num_rows, num_knobs]` meet the limits: booleans `[num_rows]`."""
        if not self.limits or self.costs is None:
            return np.ones(len(rows), dtype=bool)
        return within_limits(self.costs, self.limits, rows)
