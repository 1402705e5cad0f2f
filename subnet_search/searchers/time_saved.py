"""What the drops of a path save in milliseconds: timed where it decides, expected elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real

from search_spaces import InvalidInput, SubnetConfig
from subnet_search.settings import RESOLUTION

from .path import Drop, PathElement


class TimeSaved:
    """Times each sub-net once, and remembers what the drop of each knob was last seen to save.

    Args:
        latency: milliseconds of a sub-net.
    """

    def __init__(self, latency: Callable[[SubnetConfig], float]) -> None:
        self._latency = latency
        self._ms: dict[SubnetConfig, float] = {}
        self._ms_per_mac: dict[str, float] = {}
        self._sum_ms = self._sum_macs = 0.0

    def ms(self, config: SubnetConfig) -> float:
        """The latency of a sub-net; `InvalidInput` where that is not a positive number."""
        if config not in self._ms:
            found = self._latency(config)
            if isinstance(found, bool) or not isinstance(found, Real) or not 0 < found < math.inf:
                raise InvalidInput(
                    f"a latency must be a positive number of milliseconds, got {found!r} for {config.key}; "
                    "mend what is given as latency="
                )
            self._ms[config] = float(found)
        return self._ms[config]

    def saved(self, before: SubnetConfig, after: SubnetConfig) -> float:
        """Milliseconds, at least `RESOLUTION` of the latency before: what seems slower may only seem so."""
        return max(self.ms(before) - self.ms(after), RESOLUTION * self.ms(before))

    def expected(self, drop: Drop) -> float:
        """What a drop may save: for each multiply-add as much as its knob's last one, else as all those timed."""
        of_all = self._sum_ms / self._sum_macs if self._sum_macs else 1.0
        return self._ms_per_mac.get(drop.knob, of_all) * drop.saved_macs

    def recall(self, element: PathElement) -> None:
        """Takes over the latency of an element; `InvalidInput` where it was not timed."""
        if element.dropped not in element.latencies_ms:
            raise InvalidInput(
                f'the path begun has no latency of {element.config.key}, which the criterion "loss_per_ms" needs; '
                "go on with the criterion that it was begun with, or begin anew"
            )
        self._ms[element.config] = element.latencies_ms[element.dropped]

    def learn(self, before: PathElement, after: PathElement, drops: Sequence[Drop]) -> None:
        """Takes what was timed in the step from one element to the next, of all `drops` there were."""
        self.recall(after)
        timed = [drop for drop in drops if drop.knob in after.latencies_ms]
        for drop in timed:
            self._ms[drop.config] = after.latencies_ms[drop.knob]
            saved, macs = self.saved(before.config, drop.config), max(drop.saved_macs, 1)
            self._ms_per_mac[drop.knob] = saved / macs
            self._sum_ms += saved
            self._sum_macs += macs
