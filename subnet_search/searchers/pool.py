"""Where evaluations are made: in this process one after the other, or by workers, many at a time."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from search_spaces import InvalidInput, SubnetConfig
from search_spaces.errors import in_words
from subnet_search.factories import call_factory
from subnet_search.record import Evaluation, Objective, check_objectives

from .racing import Racing, can_race, race
from .recorder import Answer, Evaluator
from .timelimit import OutOfTime, time_limit


@dataclass(frozen=True)
class EvaluatorFactory:
    """Makes the evaluator in whichever process needs it; only the name and the options travel.

    Attributes:
        name: "package.module:function", which every worker must be able to import.
        options: its keyword arguments: small, such as the path of a run folder that all nodes see.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(self) -> Evaluator:
        """The evaluator; `InvalidInput` where the function cannot be imported, fails, or returns something else."""
        made: Any = call_factory(self.name, self.options, object, "evaluator")
        if not callable(made) or not hasattr(made, "objectives"):
            raise InvalidInput(
                f"the evaluator factory {self.name} must return an evaluator, callable and with .objectives, "
                f"got {type(made).__name__}"
            )
        evaluator: Evaluator = made
        return evaluator


@dataclass(frozen=True)
class Workers:
    """How many processes evaluate, and where.

    Attributes:
        count: how many; 1 without an address is this process itself.
        address: of a Ray cluster: "auto", "HOST:PORT" or "ray://HOST:PORT"; None starts Ray on this machine.
        gpus_each: GPUs of each worker; a part such as 0.5 shares one.
        patience_s: how long a search waits while no worker at all is alive.

    Raises:
        InvalidInput: when a number makes no sense.
    """

    count: int = 1
    address: str | None = None
    gpus_each: float = 0.0
    patience_s: float = 600.0

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise InvalidInput(f"workers must be a whole number from 1, got {self.count!r}")
        if isinstance(self.gpus_each, bool) or not 0 <= self.gpus_each < math.inf:
            raise InvalidInput(f"the GPUs of a worker must be a number from 0, got {self.gpus_each!r}")
        if self.gpus_each > 1 and self.gpus_each != int(self.gpus_each):
            raise InvalidInput(f"the GPUs of a worker must be whole, or less than 1, got {self.gpus_each!r}")

    @property
    def are_here(self) -> bool:
        """Whether this process is the only worker."""
        return self.count == 1 and self.address is None and not self.gpus_each


class Pool(Protocol):
    """Evaluates up to `count` sub-nets at a time."""

    @property
    def count(self) -> int:
        """How many evaluations should be under way."""

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Those of the evaluator."""

    @property
    def context(self) -> str:
        """That of the evaluator, "" where it has none."""

    def submit(self, config: SubnetConfig, seen: Iterable[Evaluation]) -> None:
        """Has one sub-net evaluated, sooner or later; `seen` is what a race compares it with."""

    def next(self) -> Answer:
        """Waits for the next answer, of whichever sub-net."""

    def note(self) -> str:
        """What the bar says of the workers."""

    def close(self) -> None:
        """Ends the workers; evaluations under way are given up."""


class Here:
    """This process, one evaluation after the other.

    Args:
        evaluator: what is called.
        timeout_s: how long one evaluation may take, see `time_limit`.
        racing: evaluations stop once a sub-net is beaten, see `race`.
        clock_s: a clock in seconds.
    """

    count = 1

    def __init__(
        self,
        evaluator: Evaluator,
        timeout_s: float | None = None,
        racing: Racing | None = None,
        clock_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.objectives = check_objectives(evaluator.objectives)
        self.context = str(getattr(evaluator, "context", ""))
        self._evaluator, self._timeout_s, self._clock_s = evaluator, timeout_s, clock_s
        self._racing = racing if racing is not None and can_race(evaluator) else None
        self._queue: deque[tuple[SubnetConfig, Iterable[Evaluation]]] = deque()

    def submit(self, config: SubnetConfig, seen: Iterable[Evaluation]) -> None:
        """As of every pool."""
        self._queue.append((config, seen))

    def next(self) -> Answer:
        """As of every pool."""
        config, seen = self._queue.popleft()
        return answer_of(self._evaluator, config, seen, self._timeout_s, self._racing, self._clock_s)

    def note(self) -> str:
        """As of every pool."""
        return ""

    def close(self) -> None:
        """As of every pool."""


def answer_of(
    evaluator: Evaluator,
    config: SubnetConfig,
    seen: Iterable[Evaluation],
    timeout_s: float | None,
    racing: Racing | None,
    clock_s: Callable[[], float] = time.perf_counter,
) -> Answer:
    """One evaluation, or why there is none, and its seconds; arguments as of `Here`."""
    start, evaluation, reason = clock_s(), None, ""
    try:
        with time_limit(timeout_s):
            if racing is not None and can_race(evaluator):
                evaluation = race(evaluator, config, seen, racing)
            else:
                evaluation = evaluator(config)
    except OutOfTime:
        reason = out_of_time(timeout_s)
    except Exception as error:  # whatever a user's model raises: one sub-net less, the search goes on
        reason = in_words(error)
    return Answer(config, evaluation, reason, clock_s() - start)


def out_of_time(timeout_s: float | None) -> str:
    """What is recorded of an evaluation that took too long."""
    return f"no answer within {timeout_s or 0:g} s"


def open_pool(
    evaluator: Evaluator | EvaluatorFactory | Pool,
    workers: int | Workers,
    timeout_s: float | None,
    racing: Racing | None,
    clock_s: Callable[[], float],
) -> Pool:
    """What evaluates, as `search` was asked for it.

    Raises:
        InvalidInput: an evaluator that would have to travel, one that cannot be raced, or workers that cannot work.
    """
    if hasattr(evaluator, "submit"):
        pool: Any = evaluator
        return pool  # type: ignore[no-any-return]
    workers = workers if isinstance(workers, Workers) else Workers(workers)
    if workers.are_here:
        here: Any = evaluator.make() if isinstance(evaluator, EvaluatorFactory) else evaluator
        return Here(here, timeout_s, racing, clock_s)
    if not isinstance(evaluator, EvaluatorFactory):
        raise InvalidInput(
            f"an evaluator cannot travel to workers, which make their own: got {type(evaluator).__name__} and "
            f'{workers}; give EvaluatorFactory("package.module:function", {{...}}) instead, or search with workers=1'
        )
    from subnet_search.workers import RayPool

    return RayPool(evaluator, workers, timeout_s, racing)
