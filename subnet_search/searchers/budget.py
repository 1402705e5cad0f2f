"""How long a search may go on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from search_spaces import InvalidInput


@dataclass(frozen=True, slots=True)
class Budget:
    """How much a search may spend; whichever is reached first ends it.

    Attributes:
        evaluations: different sub-nets looked at, those known from an earlier search included.
        minutes: time of the evaluations plus that of the searcher.

    Raises:
        InvalidInput: when neither is given or one is not positive.
    """

    evaluations: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        count, minutes = self.evaluations, self.minutes
        if count is None and minutes is None:
            raise InvalidInput("a budget needs evaluations=... or minutes=..., got neither")
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise InvalidInput(f"evaluations of a budget must be a whole number from 1, got {count!r}")
        if minutes is not None and (isinstance(minutes, bool) or not 0 < minutes < math.inf):
            raise InvalidInput(f"minutes of a budget must be a positive number, got {minutes!r}")
