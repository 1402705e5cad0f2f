"""Ends a call that gives no answer in time."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SHORTEST_S, LONGEST_S = 1e-6, 1e8  # what the system's alarm clock takes


class OutOfTime(BaseException):
    """The call took longer than it may; no `Exception`, so that a user's `except Exception` lets it through."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raises `OutOfTime` in the block once it has run for `seconds`; None sets no limit.

    The system's alarm (SIGALRM) interrupts Python code and waiting; a single call into compiled code ends
    first. Only the main thread can be interrupted: elsewhere, and on systems without that signal, the limit
    does not hold. An alarm that somebody else has set is given back, less the time that has gone by.
    """
    alarmed = hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()
    if seconds is None or not alarmed:
        yield
        return
    start_s, (left_s, interval_s) = time.monotonic(), signal.getitimer(signal.ITIMER_REAL)
    before = signal.signal(signal.SIGALRM, _interrupt)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, min(max(seconds, SHORTEST_S), LONGEST_S))
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:  # also when the alarm goes off on the way out
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)
        if left_s:
            left_s = max(left_s - (time.monotonic() - start_s), SHORTEST_S)
            signal.setitimer(signal.ITIMER_REAL, left_s, interval_s)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise OutOfTime
