"""Who evaluates what, where several drivers (processes that search) work on one study."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from search_spaces import SearchSpace, SubnetConfig
from subnet_search.record import Evaluation, Objective

SHARED = "storage"  # the searcher that the journal names for what other drivers found


@dataclass(frozen=True, slots=True)
class Told:
    """What another driver found, and its name."""

    evaluation: Evaluation
    driver: str


class Claims(Protocol):
    """What a search asks before it evaluates a sub-net, and tells afterwards."""

    def open(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        context: str,
        own: Iterable[tuple[Evaluation, float]],
    ) -> None:
        """Called once, before the first claim, with what this driver has on record, and its seconds."""

    def claim(self, config: SubnetConfig) -> Literal["mine", "theirs"] | Told:
        """Whether this driver is to evaluate a sub-net, another one does so now, or one has done so."""

    def done(self, evaluation: Evaluation, seconds: float) -> None:
        """Takes the answer to a claim, failures included, once the journal has it."""

    def news(self) -> list[Told]:
        """What other drivers found since the last call; the first time, all of it."""

    def wait(self) -> None:
        """Waits a little: others evaluate all that is left."""

    def close(self) -> None:
        """Gives back what is claimed and not answered."""


class NobodyElse:
    """The claims of a search that no other driver takes part in."""

    def open(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        context: str,
        own: Iterable[tuple[Evaluation, float]],
    ) -> None:
        """As of all claims."""

    def claim(self, config: SubnetConfig) -> Literal["mine", "theirs"] | Told:
        """As of all claims."""
        return "mine"

    def done(self, evaluation: Evaluation, seconds: float) -> None:
        """As of all claims."""

    def news(self) -> list[Told]:
        """As of all claims."""
        return []

    def wait(self) -> None:
        """As of all claims."""

    def close(self) -> None:
        """As of all claims."""
