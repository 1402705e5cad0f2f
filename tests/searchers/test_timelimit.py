from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from subnet_search.searchers.timelimit import OutOfTime, time_limit


@pytest.fixture(autouse=True)
def _alarm_clock_of_the_tests() -> Iterator[None]:
    """Lends the alarm clock, which pytest's own timeout uses too."""
    left_s, handler = signal.setitimer(signal.ITIMER_REAL, 0)[0], signal.getsignal(signal.SIGALRM)
    yield
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, left_s)


def test_waiting_and_working_are_cut_short() -> None:
    def work() -> None:
        while True:
            pass

    for hang in (lambda: time.sleep(60), work):
        start_s = time.monotonic()
        with pytest.raises(OutOfTime), time_limit(0.02):
            hang()
        assert 0.02 <= time.monotonic() - start_s < 5


@pytest.mark.parametrize("seconds", [None, 60.0, 1e300])
def test_what_ends_in_time_is_left_alone(seconds: float | None) -> None:
    with time_limit(seconds):
        done = True
    assert done
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_limit_too_short_for_the_clock_is_still_a_limit() -> None:
    with pytest.raises(OutOfTime), time_limit(1e-12):
        time.sleep(60)


def test_an_alarm_of_the_program_comes_back_with_the_time_it_had_left() -> None:
    seen: list[int] = []

    def note(number: int, frame: object) -> None:
        seen.append(number)

    signal.signal(signal.SIGALRM, note)
    signal.setitimer(signal.ITIMER_REAL, 100)
    with pytest.raises(OutOfTime), time_limit(0.02):
        time.sleep(60)
    assert signal.getsignal(signal.SIGALRM) is note
    assert 90 < signal.getitimer(signal.ITIMER_REAL)[0] < 99.99
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    with time_limit(60):
        time.sleep(0.03)
    time.sleep(0.01)
    assert seen == [signal.SIGALRM]


def test_another_thread_has_no_limit() -> None:
    done: list[bool] = []

    def work() -> None:
        with time_limit(0.001):
            time.sleep(0.02)
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
