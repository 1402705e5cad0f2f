"""Time that runs out: refused values, and a stop where Ctrl-C would stop."""

from __future__ import annotations

import math
import signal
import threading
import time

import pytest

from search_spaces import InvalidInput
from subnet_search.deadline import MOST_MINUTES, Deadline, TimeIsUp
from subnet_search.training.interrupt import held_interrupts

SOON_MIN = 0.02 / 60


def wait_s(seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        time.sleep(0.001)


@pytest.mark.parametrize("minutes", [0, -1, math.nan, math.inf, -math.inf, 1e9, MOST_MINUTES + 1])
def test_minutes_that_are_no_time_are_refused_with_the_rule(minutes: float) -> None:
    with pytest.raises(InvalidInput, match=r"--minutes must be a number above 0 and at most 525,600"):
        Deadline(minutes)


def test_time_is_counted_on_the_clock_that_is_given() -> None:
    now_s = [5.0]
    deadline = Deadline(2, lambda: now_s[0])
    now_s[0] += 50
    assert (deadline.spent_s(), deadline.left_s()) == (50, 70)


def test_the_stop_comes_when_time_is_up_less_the_reserve_and_the_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    deadline = Deadline(10 / 60)
    with pytest.raises(TimeIsUp, match="minutes are up"), deadline.enforced(reserve_s=9.98):
        wait_s(5)
    assert 0.01 <= deadline.spent_s() < 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_work_that_ends_in_time_is_not_stopped_afterwards() -> None:
    with Deadline(SOON_MIN).enforced():
        pass
    wait_s(0.05)


def test_a_step_under_way_is_finished_first() -> None:
    finished = []

    def step() -> None:
        with held_interrupts():
            wait_s(0.1)
            finished.append(True)

    with pytest.raises(TimeIsUp), Deadline(SOON_MIN).enforced():
        step()
    assert finished == [True]


def test_the_users_own_signals_mean_what_they_meant() -> None:
    def told(*_: object) -> None:
        raise ConnectionAbortedError

    before = signal.signal(signal.SIGTERM, told)
    try:
        with pytest.raises(KeyboardInterrupt) as stop, Deadline(1).enforced():
            signal.raise_signal(signal.SIGINT)
        assert not isinstance(stop.value, TimeIsUp)
        with pytest.raises(ConnectionAbortedError), Deadline(1).enforced():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_the_main_thread_nothing_is_raised() -> None:
    done = []

    def work() -> None:
        with Deadline(1e-9).enforced():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
