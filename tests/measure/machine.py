"""A machine made of arithmetic: a clock that calls move forward, with drift, noise and interruptions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


class Machine:
    """Calls take their time, times a slow drift, times noise, and so many interruptions of about 4 ms a second."""

    def __init__(
        self,
        seed: int = 0,
        *,
        noise: float = 0.0,
        interrupted: float = 0.0,
        drift: Callable[[float], float] = lambda now_s: 1.0,
    ) -> None:
        self.now_s, self.calls = 0.0, 0
        self._rng = np.random.default_rng(seed)
        self._noise, self._interrupted, self._drift = noise, interrupted, drift

    def clock_s(self) -> float:
        return self.now_s

    def call(self, milliseconds: float) -> Callable[[], object]:
        """Something to call that takes about so long."""

        def run() -> None:
            self.calls += 1
            seconds = 1e-3 * milliseconds * self._drift(self.now_s)
            seconds *= math.exp(self._noise * self._rng.standard_normal())
            interruptions = self._rng.poisson(self._interrupted * seconds)
            self.now_s += seconds + self._rng.exponential(0.004, interruptions).sum()

        return run


def swings(now_s: float) -> float:
    """A machine that is up to three times slower, in waves and steps of seconds, and ever slower."""
    return 1 + 0.1 * now_s + 0.5 * math.sin(2 * now_s) ** 2 + (1.0 if int(now_s) % 3 == 1 else 0.0)
