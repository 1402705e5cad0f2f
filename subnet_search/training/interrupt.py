"""Ctrl-C and SIGTERM wait for the end of a step, so that a checkpoint never holds half an update."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupts:
    """Remembers the first signal until `deliver` hands it to its earlier handler; a second one goes through."""

    def __init__(self) -> None:
        self.pending: int | None = None
        self._before: dict[int, Any] = {}

    def hold(self) -> None:
        """Starts to hold back; does nothing outside the main thread, where no signal arrives."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (
                    None,
                    signal.SIG_IGN,
                ):  # None: C code's, cannot be put back
                    self._before[number] = signal.signal(number, self._note)

    def release(self) -> None:
        """Puts the earlier handlers back."""
        while self._before:
            signal.signal(*self._before.popitem())

    def deliver(self) -> None:
        """Hands a held signal to the earlier handler, which mostly ends the program."""
        if self.pending is not None:
            number, self.pending = self.pending, None
            self.release()
            signal.raise_signal(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self.pending is not None
        self.pending = number
        if again:
            self.deliver()


@contextmanager
def held_interrupts() -> Iterator[Interrupts]:
    """Holds SIGINT and SIGTERM back inside the scope; whoever works there calls `deliver` when it is safe."""
    interrupts = Interrupts()
    interrupts.hold()
    try:
        yield interrupts
    finally:
        interrupts.release()
    interrupts.deliver()
