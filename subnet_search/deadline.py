"""The time a command may take: a clock that runs out, and a stop that is as clean as Ctrl-C."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from search_spaces.errors import InvalidInput

MOST_MINUTES = 525_600  # a year


class TimeIsUp(KeyboardInterrupt):
    """The minutes of this command are spent; it stops as cleanly as on Ctrl-C."""


class Deadline:
    """Minutes that run from the moment this is made.

    Args:
        minutes: the whole budget.
        clock_s: a clock in seconds that only goes forward.

    Raises:
        InvalidInput: the minutes are not a number above 0, or more than a year.
    """

    def __init__(self, minutes: float, clock_s: Callable[[], float] = time.monotonic) -> None:
        if not (math.isfinite(minutes) and 0 < minutes <= MOST_MINUTES):
            raise InvalidInput(
                f"--minutes must be a number above 0 and at most {MOST_MINUTES:,} (a year), got {minutes:g}"
            )
        self.minutes, self.clock_s = minutes, clock_s
        self.start_s = clock_s()
        self._before: Any = None
        self._fired = self._armed = False
        self._guard = threading.Lock()

    def spent_s(self) -> float:
        """Seconds since the start."""
        return self.clock_s() - self.start_s

    def left_s(self) -> float:
        """Seconds that are left, negative when there are none."""
        return 60 * self.minutes - self.spent_s()

    @contextmanager
    def enforced(self, reserve_s: float = 0.0) -> Iterator[None]:
        """Raises `TimeIsUp` in the scope when only `reserve_s` are left, where Ctrl-C would be raised.

        It comes as a SIGTERM of our own, which training holds back until a step and its checkpoint are done. Outside
        the main thread, where no signal arrives, nothing is raised.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._before = signal.signal(signal.SIGTERM, self._arrived)
        timer = threading.Timer(min(max(self.left_s() - reserve_s, 0.0), threading.TIMEOUT_MAX), self._fire)
        timer.daemon, self._armed = True, True
        timer.start()
        try:
            yield
        finally:
            with self._guard:
                self._armed = False
            timer.cancel()
            signal.signal(signal.SIGTERM, self._before)

    def _fire(self) -> None:
        with self._guard:
            if self._armed:
                self._fired = True
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self._fired:
            self._fired = False
            raise TimeIsUp(f"the {self.minutes:g} minutes are up")
        if callable(self._before):
            self._before(number, frame)
        elif self._before is signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
