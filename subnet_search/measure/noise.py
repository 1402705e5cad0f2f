"""What a measured time can say: the interval of its median, which differences it shows, and who is told apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from subnet_search.measure.timing import Latency

SURE = 1.96  # standard errors that an interval of 95 % reaches either way
FOUND = 0.84  # standard errors more, and a difference is found four times in five


def median_interval(
    values: np.ndarray, rng: np.random.Generator, resamples: int = 1000
) -> tuple[float, float, float]:
    """The median of `values` `[num_rounds]`, and its percentile bootstrap interval of 95 %."""
    drawn = rng.choice(values, size=(resamples, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)


def smallest_difference(*half_intervals: float) -> float:
    """The difference that measurements with these half intervals of 95 % find four times in five.

    One half interval where a ratio or a difference was measured itself, two where two nets were, each by itself.
    """
    return (SURE + FOUND) / SURE * math.hypot(*half_intervals)


def are_told_apart(one: Latency, other: Latency) -> bool:
    """Whether the difference of two latencies of one unit is larger than their noise."""
    noise_ms = math.hypot(one.half_interval_ms, other.half_interval_ms)
    return abs(one.median_ms - other.median_ms) > noise_ms


def shared_ranks(latencies: Sequence[Latency]) -> list[int]:
    """The rank of each latency, 1 for the fastest; those that cannot be told from the first of a rank share it.

    Three that differ by steps below the noise may thus have two ranks: being told apart does not carry over.
    """
    order = sorted(range(len(latencies)), key=lambda i: latencies[i].median_ms)
    ranks, first = [0] * len(latencies), 0
    for place, i in enumerate(order):
        if place == 0 or are_told_apart(latencies[i], latencies[order[first]]):
            first = place
        ranks[i] = first + 1
    return ranks
