"""Which of several networks to run so that a latency budget holds: a closed loop over measured times."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from search_spaces import InvalidInput
from search_spaces.knob import number_above_0, whole_number

MOST_PATIENCE = 16  # times the patience that was set, after switches up that did not last
LASTED = 4  # times the patience: a switch up that was not taken back within so many calls
TOO_LATE = 1.75  # late calls beyond the allowed share; of 5 %: two within 5 calls, three in 25, four in 45


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """How a controller reacts.

    Attributes:
        percentile: of the latencies that the budget holds for.
        window: so many last calls tell how slow the machine is.
        headroom: a switch goes to a network whose predicted percentile leaves this share of the budget free, and only
            one that leaves as much tries a larger one; it is left when too many calls are above the whole budget.
            Between the two nothing is switched.
        patience: calls after a switch before the next one up (twice as many before a trial). It doubles whenever a
            switch up had to be taken back within four times as many, and is what it was again after one that lasted.
        closed_loop: react to measured times; False: the latencies at rest alone decide.

    Raises:
        InvalidInput: for numbers that make no sense.
    """

    percentile: float = 95.0
    window: int = 60
    headroom: float = 0.15
    patience: int = 60
    closed_loop: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.percentile < 100:
            raise InvalidInput(f"percentile must be above 0 and below 100, got {self.percentile}")
        if whole_number(self.window, "window") < 10 or whole_number(self.patience, "patience") < 1:
            raise InvalidInput(
                f"the window must be at least 10 calls and patience at least 1, got {self.window} and {self.patience}"
            )
        if not 0 <= self.headroom < 1:
            raise InvalidInput(f"headroom is a share of the budget from 0 to below 1, got {self.headroom}")


class LatencyControl:
    """Chooses among networks of rising latency; its memory is one window, whatever happens.

    A network is left when more of its own calls were late than the percentile allows; that is seen, not predicted, by
    a cumulative sum (Page, "Continuous Inspection Schemes", Biometrika 1954): each call that is late adds one, each
    call takes away the share that may be late, and the sum is never below 0. So a load that sets in is answered within
    a few calls, and a share a little too large in time.

    Where to go is predicted: each measured time over its network's latency at rest is one sample of how much slower
    the machine is, and the percentile of any network is its latency at rest times that of the samples. Downwards, the
    median of the calls since the sum began to rise must fit, too: the window still knows the time before. Where
    interruptions add a fixed delay, this is too pessimistic for larger networks; so one that has been well within the
    budget for a while also *tries* the next larger one, less and less often if that fails. Not thread-safe by itself.

    Args:
        rest_ms: latencies alone on the machine, ascending `[num_networks]`.
        settings: how it reacts.

    Attributes:
        current: place of the network to run now; the largest one until there is a budget.
        budget_ms: None until there is one.
        switches: how often the loop has switched.

    Raises:
        InvalidInput: no network, or latencies that do not ascend.
    """

    def __init__(self, rest_ms: Sequence[float], settings: ControlSettings | None = None) -> None:
        self.rest_ms = tuple(float(value) for value in rest_ms)
        ordered = all(a <= b for a, b in itertools.pairwise(self.rest_ms))
        if not (self.rest_ms and ordered and all(0 < value < math.inf for value in self.rest_ms)):
            raise InvalidInput(f"latencies at rest must be above 0 and ascend, got {list(rest_ms)}")
        self.settings = settings or ControlSettings()
        self.current, self.switches = len(self.rest_ms) - 1, 0
        self.budget_ms: float | None = None
        self._slowdowns = [1.0] * self.settings.window  # a ring
        self._sorted = list(self._slowdowns)
        self._place = 0
        self._begin()

    def _begin(self) -> None:
        """Forgets how the loop came to the present network."""
        self._since, self._patience, self._went_up = 0, self.settings.patience, False
        self._too_late, self._rising = 0.0, 0  # the sum, and the calls since it was 0

    def set_budget(self, latency_ms: float) -> bool:
        """Chooses the largest network that is predicted to hold a budget; the smallest if none is.

        Returns:
            Whether the smallest one holds it at rest.

        Raises:
            InvalidInput: the budget is no number above 0.
        """
        latency_ms = number_above_0(latency_ms, "a latency budget in milliseconds")
        if latency_ms != self.budget_ms:
            self.budget_ms = latency_ms
            self.current = self._fitting(self.budget_ms, self.slowdown)
            self._begin()
        return self.rest_ms[0] <= self.budget_ms

    @property
    def slowdown(self) -> float:
        """The percentile of the slowdown over the window, which holds 1.0 where nothing was measured yet."""
        if not self.settings.closed_loop:
            return 1.0
        return self._sorted[math.ceil(self.settings.percentile / 100 * len(self._sorted)) - 1]

    def predicted_ms(self, place: int) -> float:
        """The percentile of a network's latency, as things are."""
        return self.rest_ms[place] * self.slowdown

    def observe(self, place: int, latency_ms: float) -> int:
        """Takes in what one call of a network took, and switches if the loop says so.

        Returns:
            The place of the network to run now.
        """
        self._remember(latency_ms / self.rest_ms[place])
        if self.budget_ms is None or not self.settings.closed_loop or place != self.current:
            return self.current
        self._since += 1
        allowed = 1 - self.settings.percentile / 100
        self._too_late = max(0.0, self._too_late + (latency_ms > self.budget_ms) - allowed)
        self._rising = self._rising + 1 if self._too_late else 0
        if self._too_late > TOO_LATE - 1e-9:
            self._down()
            self._too_late, self._rising = 0.0, 0
        elif self.current + 1 < len(self.rest_ms):
            self._up()
        return self.current

    def _remember(self, slowdown: float) -> None:
        del self._sorted[bisect.bisect_left(self._sorted, self._slowdowns[self._place])]
        bisect.insort(self._sorted, slowdown)
        self._slowdowns[self._place] = slowdown
        self._place = (self._place + 1) % len(self._slowdowns)

    def _fitting(self, limit_ms: float, slowdown: float) -> int:
        """The largest network that takes no longer on a machine so much slower, else the smallest."""
        fitting = [place for place, rest in enumerate(self.rest_ms) if rest * slowdown <= limit_ms]
        return fitting[-1] if fitting else 0

    def _aim_ms(self) -> float:
        assert self.budget_ms is not None
        return (1 - self.settings.headroom) * self.budget_ms

    def _down(self) -> None:
        calls = min(self._rising, len(self._slowdowns))
        lately = median(
            self._slowdowns[(self._place - 1 - back) % len(self._slowdowns)] for back in range(calls)
        )
        target = min(self._fitting(self._aim_ms(), max(self.slowdown, lately)), max(self.current - 1, 0))
        if target == self.current:
            return
        taken_back = self._went_up and self._since <= LASTED * self._patience
        usual = self.settings.patience
        self._patience = min(2 * self._patience, MOST_PATIENCE * usual) if taken_back else usual
        self._switch(target, up=False)

    def _up(self) -> None:
        """To what is predicted to fit; or one step on trial, where the present one has long been well within."""
        target, settled = (
            self._fitting(self._aim_ms(), self.slowdown),
            self._since >= 2 * max(self._patience, self.settings.window),
        )
        if self._since >= self._patience and target > self.current:
            self._switch(target, up=True)
        elif settled and self.predicted_ms(self.current) <= self._aim_ms():
            self._switch(self.current + 1, up=True)

    def _switch(self, target: int, *, up: bool) -> None:
        self.current, self._since, self._went_up = target, 0, up
        self._too_late, self._rising = 0.0, 0
        self.switches += 1
