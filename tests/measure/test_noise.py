from __future__ import annotations

import numpy as np
import pytest

from subnet_search.measure.noise import are_told_apart, median_interval, shared_ranks, smallest_difference
from subnet_search.measure.timing import Latency


def latency(median_ms: float, half_ms: float) -> Latency:
    return Latency(median_ms, median_ms - half_ms, median_ms + half_ms, 12)


def test_the_interval_holds_the_true_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [median_interval(rng.lognormal(0.0, 0.1, 25), rng, 300) for _ in range(200)]
    assert 0.88 <= np.mean([low <= 1.0 <= high for _, low, high in found]) <= 0.99


def test_a_difference_of_the_smallest_size_is_found_four_times_in_five() -> None:
    rng, error = np.random.default_rng(0), 0.1  # standard error of each of two measurements
    half = 1.96 * error
    true = smallest_difference(half, half)
    found = rng.normal(10.0 + true, error, 4000) - rng.normal(10.0, error, 4000)
    assert np.mean(abs(found) > np.hypot(half, half)) == pytest.approx(0.8, abs=0.02)


def test_ranks_are_shared_within_the_noise() -> None:
    nets = [latency(3.0, 0.1), latency(1.0, 0.1), latency(1.05, 0.1), latency(2.0, 0.0)]
    assert shared_ranks(nets) == [4, 1, 1, 3]
    assert not are_told_apart(nets[1], nets[2])
    assert are_told_apart(nets[0], nets[3])
    assert shared_ranks([]) == []
