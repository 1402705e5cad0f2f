from __future__ import annotations

import numpy as np
import pytest

from subnet_search.searchers.failures import Failures
from subnet_search.searchers.success import Success


def row_until_too_many(ok: int, failed: int) -> int:
    """How long a row of failures becomes after so many of both, one by one."""
    counted = Failures()
    for number in range(ok + failed):
        counted.add("x", ok=number >= failed)
    counted.end_row()
    while not counted.too_many:
        counted.add("y", ok=False)
    return len(counted.in_a_row)


@pytest.mark.parametrize(
    ("ok", "failed", "length"),
    [(0, 0, 10), (5, 0, 10), (100, 0, 10), (0, 3, 10), (50, 50, 20), (10, 90, 122)],
)
def test_a_row_is_too_long_where_chance_does_not_explain_it(ok: int, failed: int, length: int) -> None:
    assert (
        row_until_too_many(ok, failed) == length
    )  # the first with ((failed + 1) / (ok + failed + 2))^length <= 1e-6


def test_a_row_of_what_was_broken_tells_nothing_about_subnets() -> None:
    counted = Failures()
    counted.add("a", ok=True)
    for _ in range(50):
        counted.add("b", ok=False)
    counted.end_row(broken=True)
    for _ in range(13):
        assert not counted.too_many
        counted.add("c", ok=False)
    assert counted.too_many


def test_thresholds_are_learnt_from_few_failures() -> None:
    rng, success = np.random.default_rng(0), Success()
    traits = rng.integers(1, 5, (40, 6)).astype(float)
    assert success.log_chances(traits).tolist() == [0.0] * 40
    success.learn(traits, traits[:, 2] > 1)
    others = rng.integers(1, 5, (500, 6)).astype(float)
    hopeless = np.isneginf(success.log_chances(others))
    assert (hopeless == (others[:, 2] == 1)).mean() > 0.95
    success.learn(traits, np.ones(40, dtype=bool))
    assert not success.log_chances(others).any()
