"""What a benchmark returns, and the clock that all of them share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Figure:
    """One measured claim: `samples` are single rounds, or one median for each config; their median counts."""

    name: str
    unit: str
    samples: tuple[float, ...]
    relation: Literal["<=", ">="]
    aim: float
    rival: str  # what it is compared with, measured in the same run
    rival_value: float  # in the unit of the figure, or 1.0 where the figure is itself a ratio to the rival

    @property
    def median(self) -> float:
        return float(np.median(self.samples))

    @property
    def met(self) -> bool:
        return self.median <= self.aim if self.relation == "<=" else self.median >= self.aim

    @property
    def ratio(self) -> float:
        """The figure over its rival."""
        return self.median / self.rival_value


def interleaved_seconds(
    calls: Sequence[Callable[[], object]], rounds: int, seed: int = 0
) -> NDArray[np.float64]:
    """Times every call once a round, in a random order each round, after one call to warm up.

    Returns:
        Seconds `[rounds, num_calls]`; what disturbs the machine for long disturbs all calls of a round alike.
    """
    rng = np.random.default_rng(seed)
    for call in calls:
        call()
    seconds = np.empty((rounds, len(calls)))
    for row in seconds:
        for i in rng.permutation(len(calls)):
            start_s = time.perf_counter()
            calls[i]()
            row[i] = time.perf_counter() - start_s
    return seconds


def median_ratio(seconds: NDArray[np.float64], over: int, under: int) -> float:
    """The median over the rounds of one call's time by another's."""
    return float(np.median(seconds[:, over] / seconds[:, under]))
