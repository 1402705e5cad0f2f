"""Asks, has evaluated, and tells, with as many sub-nets under way as there are workers."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from search_spaces import InvalidInput, SubnetConfig, SubnetSearchError
from subnet_search.record import Evaluation

from .budget import Budget
from .claims import SHARED, Claims, NobodyElse, Told
from .feasible import SpaceExhausted
from .guided import GuidedSearcher
from .optuna_search import OptunaSearcher
from .pool import Pool
from .recorder import Answer, Ask, Known, Recorder
from .searcher import Searcher
from .shown import Shown

CONTROLS = ("uniform", "random")
MOST_REPEATS = 1000  # in a row: a searcher with nothing new for so long is taken to have no more


@dataclass(order=True)
class Flight:
    """One sub-net that was asked for and not told.

    Attributes:
        place: order among those whose answer is on record.
        config: which one.
        number: of its ask in the journal; None where the answer is on record.
        known: that answer.
        to: the searchers that wait for it, and their names.
    """

    place: int
    config: SubnetConfig = field(compare=False)
    number: int | None = field(compare=False)
    known: Known | None = field(compare=False)
    to: list[tuple[str, Searcher]] = field(compare=False)


class Loop:
    """One search under way.

    Up to `pool.count` sub-nets are being evaluated. Answers are told in the order in which they come, which is that
    of their lines in the journal. A search that goes on tells what is recorded in the same order between the same
    asks: so its searchers know the same at each ask, and propose the same. Controls and searcher overlap: no worker
    waits for the last control.

    Args:
        recorder: keeps what comes of it.
        pool: evaluates.
        budget: when to stop asking.
        clock_s: a clock in seconds.
        told: is called after each evaluation.
        shown: the bar.
        claims: says which sub-nets other drivers of a shared study evaluate. Those are set aside; what comes of them,
            and of all that others ask for, is told like an answer of one's own.
        allows: which of the sub-nets that others ask for count here; their limits may be looser.
    """

    def __init__(
        self,
        recorder: Recorder,
        pool: Pool,
        budget: Budget,
        clock_s: Callable[[], float],
        told: Callable[[], None],
        shown: Shown,
        claims: Claims | None = None,
        allows: Callable[[SubnetConfig], bool] = lambda config: True,
    ) -> None:
        self._recorder, self._pool, self._budget = recorder, pool, budget
        self._clock_s, self._told, self._shown = clock_s, told, shown
        self._start_s = clock_s()
        self._flights: dict[str, Flight] = {}
        self._held: list[Flight] = []  # a heap, by their places
        self._asked: set[Ask] = set()
        self._claims, self._allows = claims or NobodyElse(), allows
        self._elsewhere: dict[str, list[tuple[SubnetConfig, str, int, Searcher]]] = {}  # asked for, by key
        self._unasked: list[Evaluation] = []  # of others, for the searcher that comes after the controls

    def follow(
        self, name: str, searcher: Searcher, *, most: int | None = None, time_share: float = 1.0
    ) -> None:
        """Has evaluated what `searcher` proposes until `most` new sub-nets, that share of the time, or its end.

        A searcher that repeats itself `MOST_REPEATS` times in a row, with all answers told, has come to its end. The
        last sub-nets may still be under way afterwards.
        """
        goal = None if most is None else self._begun + most
        turn = repeats = 0
        while True:
            self._hear(self._claims.news())
            if name not in CONTROLS:
                self._tell_unasked(searcher)
            self._release_due()
            if self._done(goal, time_share):
                return
            if self._live >= self._pool.count and not self._recorder.asks_ahead(name, turn):
                self._wait()
                continue
            if repeats >= MOST_REPEATS:
                if not (self._flights or self._elsewhere):
                    return
                self._wait()  # an answer may lead further
                repeats = 0
                continue
            try:
                config = self._ask(searcher, self._recorder.asked(name, turn))
            except SpaceExhausted:
                if name in CONTROLS or not (self._flights or self._elsewhere):
                    return
                self._wait()  # an answer may lead further
            except SubnetSearchError as error:
                if isinstance(error, InvalidInput) or not (self._flights or self._elsewhere):
                    raise
                self._wait()  # it cannot go on without an answer
            else:
                begun = self._begun
                self._begin(config, name, turn, searcher)
                turn, repeats = turn + 1, repeats + 1 if self._begun == begun else 0

    def drain(self) -> None:
        """Waits for everything that is under way."""
        while self._flights or (self._elsewhere and not self._is_late()):
            self._wait()

    def recall(self) -> None:
        """Takes what the journal has from other drivers; for the beginning."""
        for name, evaluation, _ in self._recorder.on_record():
            if name == SHARED and self._allows(evaluation.config):
                self._recorder.take(evaluation, 0.0)
                self._unasked.append(evaluation)

    def ended(self) -> Literal["evaluations", "minutes", "exhausted"]:
        """What ended the search."""
        most = self._budget.evaluations
        if most is not None and len(self._recorder.found) >= most:
            return "evaluations"
        return "minutes" if self._done(None, 1.0) else "exhausted"

    def spent_s(self) -> float:
        """Seconds of this process, and of the evaluations that an earlier one made, shared by the workers."""
        earlier_s = (self._recorder.seconds - self._recorder.seconds_here) / self._pool.count
        return earlier_s + self._clock_s() - self._start_s

    @property
    def _begun(self) -> int:
        return len(self._recorder.found) + len(self._flights) + len(self._elsewhere)

    @property
    def _live(self) -> int:
        return len(self._flights) - len(self._held)

    def _done(self, goal: int | None, time_share: float) -> bool:
        """Shares of the time count evaluations alone: a resumed search must come to the same conclusion."""
        if self._begun == 0:
            return False
        if goal is not None and self._begun >= goal:
            return True
        if self._budget.evaluations is not None and self._begun >= self._budget.evaluations:
            return True
        if self._budget.minutes is None:
            return False
        most_s = 60 * self._budget.minutes
        evaluating_s = self._recorder.seconds / self._pool.count
        return evaluating_s >= time_share * most_s or self.spent_s() >= most_s

    def _ask(self, searcher: Searcher, recorded: SubnetConfig | None) -> SubnetConfig:
        if recorded and isinstance(searcher, OptunaSearcher | GuidedSearcher):
            return searcher.replay(recorded)
        return searcher.ask()

    def _begin(self, config: SubnetConfig, name: str, turn: int, searcher: Searcher) -> None:
        self._asked.add((name, turn))
        if config.key in self._flights:
            self._flights[config.key].to.append((name, searcher))
            return
        if (before := self._recorder.found.get(config.key)) is not None:
            searcher.tell(before)
            return
        known = self._recorder.known(config)
        if known is None:
            if not self._is_mine(config, name, turn, searcher):
                return
            flight = Flight(0, config, self._recorder.begin(config, name, turn), None, [(name, searcher)])
            self._flights[config.key] = flight
            self._pool.submit(config, self._recorder.found.values())
            return
        flight = Flight(known.place, config, None, known, [(name, searcher)])
        if known.asked == (name, turn):  # it is told when it was told in the earlier process
            self._flights[config.key] = flight
            heapq.heappush(self._held, flight)
        else:
            self._land(flight, known.evaluation, known.seconds)

    def _release_due(self) -> None:
        while self._held and (known := self._held[0].known) and known.after in self._asked:
            self._release()

    def _release(self) -> None:
        flight = heapq.heappop(self._held)
        assert flight.known is not None
        del self._flights[flight.config.key]
        self._land(flight, flight.known.evaluation, flight.known.seconds)

    def _wait(self) -> None:
        """Tells one answer more: from the record while there are such, else the next that a worker gives."""
        if self._held:
            self._release()
            return
        if not self._flights:
            self._wait_for_others()
            return
        answer: Answer = self._pool.next()
        flight = self._flights.pop(answer.config.key)
        assert flight.number is not None
        evaluation = self._recorder.end(flight.number, answer)
        self._claims.done(evaluation, answer.seconds)
        self._land(flight, evaluation, answer.seconds)

    def _is_mine(self, config: SubnetConfig, name: str, turn: int, searcher: Searcher) -> bool:
        """Whether to evaluate it here; what others evaluate is set aside, what they have evaluated is told."""
        waiting = self._elsewhere.setdefault(config.key, [])
        waiting.append((config, name, turn, searcher))
        claim = self._claims.claim(config) if len(waiting) == 1 else "theirs"
        if claim == "mine":
            del self._elsewhere[config.key]
        elif claim != "theirs":
            self._hear([claim])
        return claim == "mine"

    def _hear(self, news: list[Told]) -> None:
        for told in news:
            key = told.evaluation.config.key
            known = key in self._recorder.found or key in self._flights
            if known or not self._allows(told.evaluation.config):
                continue
            self._recorder.adopt(told)
            asked = [(name, searcher) for _, name, _, searcher in self._elsewhere.pop(key, ())]
            if not asked:
                self._unasked.append(told.evaluation)
            self._land(Flight(0, told.evaluation.config, None, None, asked), told.evaluation, 0.0)

    def _tell_unasked(self, searcher: Searcher) -> None:
        for evaluation in self._unasked:
            searcher.tell(evaluation)
        self._unasked = []

    def _wait_for_others(self) -> None:
        """Until one of them is done, or its driver seems dead and the sub-net becomes this one's."""
        self._claims.wait()
        self._hear(self._claims.news())
        asides, self._elsewhere = self._elsewhere, {}
        for waiting in asides.values():
            for aside in waiting:
                self._begin(*aside)

    def _is_late(self) -> bool:
        return self._budget.minutes is not None and self.spent_s() >= 60 * self._budget.minutes

    def _land(self, flight: Flight, evaluation: Evaluation, seconds: float) -> None:
        self._recorder.take(evaluation, seconds)
        for _, searcher in flight.to:
            searcher.tell(evaluation)
        self._told()
        control = bool(flight.to) and flight.to[0][0] in CONTROLS
        self._shown.add(evaluation, control=control, note=self._pool.note(), minutes=self.spent_s() / 60)
