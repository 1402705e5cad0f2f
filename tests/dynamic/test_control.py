from __future__ import annotations

import numpy as np
import pytest

from search_spaces import InvalidInput
from subnet_search.dynamic.control import ControlSettings, LatencyControl

REST_MS = (2.0, 4.0, 8.0, 16.0)


def run(control: LatencyControl, loads: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Latencies and places of calls on a machine that is `loads` times slower, with noise."""
    noise = np.random.default_rng(seed).lognormal(0, 0.05, len(loads))
    times, places = [], []
    for load, jitter in zip(loads, noise, strict=True):
        place = control.current
        times.append(REST_MS[place] * load * jitter)
        places.append(place)
        control.observe(place, times[-1])
    return np.array(times), np.array(places)


PERIODS = np.repeat([1.0, 3.0, 1.0, 6.0, 1.0], 600)  # other work comes and goes


def test_the_percentile_holds_while_other_work_comes_and_goes() -> None:
    control = LatencyControl(REST_MS)
    control.set_budget(24.0)
    times, places = run(control, PERIODS)
    assert np.percentile(times, 95) <= 24.0
    assert [int(np.median(part)) for part in places.reshape(5, 600)] == [3, 1, 3, 0, 3]
    fixed = LatencyControl(REST_MS, ControlSettings(closed_loop=False))
    fixed.set_budget(24.0)
    alone, _ = run(fixed, PERIODS)
    assert np.percentile(alone, 95) > 90.0


def test_a_load_that_sets_in_is_answered_within_two_late_calls() -> None:
    control = LatencyControl(REST_MS)
    control.set_budget(24.0)
    run(control, np.ones(200))
    times, places = run(control, np.full(30, 6.0))
    assert places.tolist() == [3, 3] + 28 * [0]
    assert (times[2:] <= 24.0).all()


@pytest.mark.parametrize(("late", "within"), [(2, 5), (3, 25), (4, 45)])
def test_so_many_late_calls_within_so_many_and_no_more_make_a_network_be_left(late: int, within: int) -> None:
    for calls, left in ((within, True), (within + 1, False)):
        control = LatencyControl(REST_MS)
        control.set_budget(24.0)
        for is_late in _spread(late, calls - late):
            assert control.current == 3
            control.observe(3, 25.0 if is_late else 16.0)
        assert (control.current < 3) == left


def _spread(late: int, gaps: int) -> list[bool]:
    """Late calls first and last, and the others as far apart as can be."""
    parts = np.array_split(np.arange(gaps), late - 1)
    return [True] + [mark for part in parts for mark in [*[False] * len(part), True]]


def test_the_percentile_holds_in_each_period_of_a_load_that_varies_much() -> None:
    late = {"rest": [], "load": []}  # type: dict[str, list[float]]
    for seed in range(8):
        rng, control = np.random.default_rng(seed), LatencyControl((4.0, 5.5, 9.0, 11.0, 12.5))
        control.set_budget(19.0)
        for name in 3 * ("rest", "load"):
            factor, spread, often = (1.05, 0.1, 0.01) if name == "rest" else (2.0, 0.25, 0.2)
            slower = factor * rng.lognormal(0, spread, 400)
            delays_ms = rng.exponential(6.0, 400) * (rng.random(400) < often)
            for slow, delay_ms in zip(slower, delays_ms, strict=True):
                latency_ms = control.rest_ms[control.current] * slow + delay_ms
                late[name].append(latency_ms > 19.0)
                control.observe(control.current, latency_ms)
    assert np.mean(late["rest"]) < 0.01
    assert np.mean(late["load"]) <= 0.05


@pytest.mark.parametrize("budget_ms", [17.0, 18.0, 20.0, 24.0])
def test_steady_load_settles(budget_ms: float) -> None:
    control = LatencyControl(REST_MS)
    control.set_budget(budget_ms)
    times, _ = run(control, np.full(6000, 2.05), seed=1)  # the third takes 16.4 ms
    assert np.percentile(times, 95) <= budget_ms
    assert control.switches < 20  # trials, ever rarer


def test_a_switch_up_that_is_taken_back_is_tried_less_and_less_often() -> None:
    # the larger network suffers more than the window foretells, so each switch up fails
    control = LatencyControl((1.0, 2.0), ControlSettings(window=20, patience=20))
    control.set_budget(3.0)
    went_up = []
    for call in range(6000):
        before = control.current
        control.observe(before, 1.0 if before == 0 else 4.0)
        if control.current > before:
            went_up.append(call)
    gaps = np.diff(went_up)
    assert len(gaps) > 4
    assert (np.diff(gaps[:4]) > 0).all()
    assert gaps.max() < 16 * 20 + 40


def test_a_fixed_delay_now_and_then_does_not_keep_the_smallest_one_running() -> None:
    rest_ms, rng = (1.0, 2.0, 4.0, 8.0), np.random.default_rng(0)
    control = LatencyControl(rest_ms)
    control.set_budget(12.0)
    for _ in range(300):  # first everything is slow
        control.observe(control.current, 13.0)
    assert control.current == 0
    late, places = [], []
    for _ in range(3000):  # then calls are interrupted for 3 ms: the smallest one looks four times slower
        places.append(control.current)
        latency_ms = rest_ms[places[-1]] + 3.0 * (rng.random() < 0.2)
        late.append(latency_ms > 12.0)
        control.observe(places[-1], latency_ms)
    assert places[-1] == 3
    assert not any(late)


def test_memory_is_one_window_however_long_it_runs() -> None:
    control = LatencyControl(REST_MS)
    control.set_budget(20.0)
    before = {name: len(value) for name, value in vars(control).items() if isinstance(value, list | tuple)}
    run(control, PERIODS)
    assert {n: len(v) for n, v in vars(control).items() if isinstance(v, list | tuple)} == before


def test_a_budget_is_served_by_the_largest_that_holds_it_or_the_fastest() -> None:
    control = LatencyControl(REST_MS)
    assert control.current == 3
    assert [(control.set_budget(ms), control.current) for ms in (8.0, 7.9, 100, 1.9)] == [
        (True, 2), (True, 1), (True, 3), (False, 0),
    ]  # fmt: skip


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"above 0 and ascend, got \[2, 1\]"):
        LatencyControl([2, 1])
    for wrong in (0, -1, float("nan"), True, "10"):
        with pytest.raises(InvalidInput, match="budget in milliseconds must be a number above 0"):
            LatencyControl(REST_MS).set_budget(wrong)  # type: ignore[arg-type]
    for settings in ({"percentile": 100}, {"window": 3}, {"patience": 0}, {"headroom": 1.0}):
        with pytest.raises(InvalidInput, match=r"must be|is a share"):
            ControlSettings(**settings)  # type: ignore[arg-type]
