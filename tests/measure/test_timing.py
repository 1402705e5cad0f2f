"""Timing on a machine made of arithmetic, where the true answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from subnet_search.measure.timing import Latency, Protocol, time_alone, time_beside
from tests.measure.machine import Machine, swings


def beside(
    machine: Machine, call_ms: float, reference_ms: float, seed: int = 0, protocol: Protocol | None = None
) -> Latency:
    """The call's latency where the reference is said to take 10 ms."""
    calls = machine.call(call_ms), machine.call(reference_ms)
    return time_beside(*calls, 10.0, np.random.default_rng(seed), protocol, clock_s=machine.clock_s)


def test_on_a_quiet_machine_the_answer_is_exact_and_comes_after_the_fewest_rounds() -> None:
    machine = Machine()
    alone = time_alone(machine.call(4.0), np.random.default_rng(0), clock_s=machine.clock_s)
    found = beside(machine, 4.0, 8.0)
    for latency, true_ms in ((alone, 4.0), (found, 5.0)):
        assert latency.rounds == Protocol().least_rounds
        assert latency.median_ms == pytest.approx(true_ms)
        assert latency.half_interval_ms == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_a_machine_that_becomes_slower_and_faster_moves_times_but_not_ratios(seed: int) -> None:
    machine = Machine(seed, noise=0.02, drift=swings)
    machine.now_s = 2.0 * seed
    found = beside(machine, 3.0, 6.0, seed)
    assert found.median_ms == pytest.approx(5.0, rel=0.03)
    alone = [
        time_alone(machine.call(3.0), np.random.default_rng(i), clock_s=machine.clock_s) for i in range(6)
    ]
    assert max(a.median_ms for a in alone) > 1.2 * min(a.median_ms for a in alone)


@pytest.mark.parametrize(
    ("noise", "interrupted", "milliseconds"),
    [
        (0.02, 0.0, 0.2),
        (0.1, 50.0, 2.0),
        (0.05, 5.0, 30.0),
        pytest.param(0.05, 5.0, 0.2, marks=pytest.mark.slow),
        pytest.param(0.1, 50.0, 0.2, marks=pytest.mark.slow),
        pytest.param(0.02, 0.0, 2.0, marks=pytest.mark.slow),
        pytest.param(0.05, 5.0, 2.0, marks=pytest.mark.slow),
    ],
)
def test_equal_calls_have_a_ratio_of_one_within_the_interval(
    noise: float, interrupted: float, milliseconds: float
) -> None:
    machines = [Machine(s, noise=noise, interrupted=interrupted, drift=swings) for s in range(40)]
    found = [beside(machine, milliseconds, milliseconds, s) for s, machine in enumerate(machines)]
    covered = np.mean([latency.low_ms <= 10.0 <= latency.high_ms for latency in found])
    assert covered >= 0.85  # 0.95, less three standard errors


def test_rounds_go_on_until_the_interval_is_narrow_or_a_bound_is_reached() -> None:
    machine = Machine(0, noise=0.03)
    coarse, fine = (beside(machine, 1.0, 1.0, 0, Protocol(narrow=share)) for share in (0.05, 0.02))
    assert coarse.rounds < fine.rounds < Protocol().most_rounds
    assert fine.half_interval_ms <= 0.02 * fine.median_ms
    restless = Machine(0, noise=0.5)
    assert beside(restless, 0.5, 0.5).rounds == Protocol().most_rounds


def test_a_measurement_of_noisy_calls_ends_soon_after_the_time_allowed() -> None:
    machine = Machine(0, noise=0.5)
    beside(machine, 8.0, 16.0)
    assert 1.0 <= machine.now_s < 1.5


def test_slow_calls_are_measured_the_least_number_of_rounds() -> None:
    machine = Machine()
    assert beside(machine, 400.0, 800.0).rounds == Protocol().least_rounds


def test_short_calls_are_repeated_within_a_turn_and_long_ones_are_not() -> None:
    protocol = Protocol(least_rounds=10, warmup=3)
    short, long = Machine(), Machine()
    time_alone(short.call(0.5), np.random.default_rng(0), protocol, clock_s=short.clock_s)
    time_alone(long.call(50.0), np.random.default_rng(0), protocol, clock_s=long.clock_s)
    assert short.calls == 3 + 10 * (
        1 + 4
    )  # four calls of 0.5 ms are a turn of 2 ms, after one that is not timed
    assert long.calls == 3 + 10


def test_a_call_and_its_reference_have_equally_many_calls_in_a_turn() -> None:
    short, long = Machine(), Machine()
    long.clock_s = short.clock_s  # type: ignore[method-assign]
    protocol = Protocol(least_rounds=10, warmup=3)
    time_beside(
        short.call(0.1), long.call(0.9), 1.0, np.random.default_rng(0), protocol, clock_s=short.clock_s
    )
    assert short.calls == long.calls


def test_a_cold_first_call_of_a_turn_does_not_count() -> None:
    machine = Machine()
    last = [""]

    def cached(name: str, milliseconds: float) -> None:
        machine.now_s += 1e-3 * milliseconds * (1 if last[0] == name else 5)
        last[0] = name

    found = time_beside(
        lambda: cached("a", 1.0),
        lambda: cached("b", 2.0),
        10.0,
        np.random.default_rng(0),
        clock_s=machine.clock_s,
    )
    assert found.median_ms == pytest.approx(5.0)


def test_a_clock_that_stands_still_gives_a_number() -> None:
    found = time_beside(lambda: None, lambda: None, 10.0, np.random.default_rng(0), clock_s=lambda: 1.0)
    assert math.isfinite(found.median_ms)
