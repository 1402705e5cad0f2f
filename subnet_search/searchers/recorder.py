"""Evaluates every sub-net once and keeps what came of it, failures included."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from search_spaces import InvalidInput, SubnetConfig, SubnetSearchError
from subnet_search.record import Evaluation, Images, Journal, Objective, check_objectives
from subnet_search.record.journal import Line

from .timelimit import OutOfTime, time_limit

FAILURES_IN_A_ROW = 10

Race = Callable[[SubnetConfig, Iterable[Evaluation]], Evaluation]


class Evaluator(Protocol):
    """Finds out what a sub-net is worth.

    It may also have `context: str`, a checksum of weights, data and protocol: what is recorded under one context
    is not evaluated again.
    """

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What the values mean, in their order."""

    def __call__(self, config: SubnetConfig) -> Evaluation:
        """Evaluates one canonical config; may raise, which counts as failed."""


class Recorder:
    """An evaluator with a journal: an ask line before each evaluation, its answer after it.

    Args:
        evaluator: what is asked when the journal does not know.
        journal: the record, possibly of a search that was cut off.
        context: of the evaluator; records under another one do not count.
        search: stands for one call of `search`; its asks can be looked up again by their turn.
        clock_s: a clock in seconds.
        timeout_s: how long one evaluation may take, see `time_limit`; one that takes longer has failed.
        race: evaluates instead of the evaluator, and may stop early, given what this search looked at before. A
            record of something stopped counts if its rival is among that; else it is evaluated anew.

    Attributes:
        found: what this search looked at by config key, in order.
        seconds: time of the evaluations in `found`, those of an earlier process included.
        seconds_here: time of the evaluations made by this process.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        journal: Journal,
        context: str,
        search: str,
        clock_s: Callable[[], float] = time.perf_counter,
        timeout_s: float | None = None,
        race: Race | None = None,
    ) -> None:
        self.objectives = check_objectives(evaluator.objectives)
        self.found: dict[str, Evaluation] = {}
        self.seconds = self.seconds_here = 0.0
        self._evaluator, self._journal, self._context, self._search = evaluator, journal, context, search
        self._clock_s, self._timeout_s, self._race = clock_s, timeout_s, race
        self._failures = 0
        self._known = {k: line for k, line in journal.known(context).items() if self._answers(line)}
        self._stopped: dict[str, list[Line]] = {}
        for (key, _), line in journal.stopped(context).items() if race else ():
            if self._answers(line):
                self._stopped.setdefault(key, []).append(line)
        self._pending = {line["key"]: line["n"] for line in journal.pending() if line["context"] == context}
        self._turns = {
            (line["searcher"], line["turn"]): SubnetConfig(line["config"])
            for line in journal.lines()
            if line["kind"] == "ask" and line["search"] == search
        }

    def asked(self, searcher: str, turn: int) -> SubnetConfig | None:
        """What this search asked in an earlier process as question `turn` to `searcher`, if that is recorded."""
        return self._turns.get((searcher, turn))

    def evaluate(self, config: SubnetConfig, searcher: str, turn: int) -> Evaluation:
        """The evaluation of `config`: from this search, from the record, or made now.

        Raises:
            SubnetSearchError: when ten evaluations made by this process failed in a row.
        """
        if config.key in self.found:
            return self.found[config.key]
        if line := self._recorded(config.key):
            evaluation, seconds = self._from_line(config, line), float(line["seconds"])
        else:
            evaluation, seconds = self._fresh(config, searcher, turn)
            self.seconds_here += seconds
        self.found[config.key] = evaluation
        self.seconds += seconds
        if self._failures >= FAILURES_IN_A_ROW:
            raise SubnetSearchError(
                f"{self._failures} evaluations in a row failed, the last one of {config.key}: {evaluation.reason}. "
                "All are recorded; mend the cause and start the same search again"
            )
        return evaluation

    def _recorded(self, key: str) -> Line | None:
        """What the record knows of a sub-net: in full, failed, or beaten by one that this search has seen."""
        beaten = (line for line in self._stopped.get(key, ()) if line["images"]["rival"] in self.found)
        return self._known.get(key) or next(beaten, None)

    def _fresh(self, config: SubnetConfig, searcher: str, turn: int) -> tuple[Evaluation, float]:
        n = self._pending.get(config.key)
        if n is None:
            n = self._journal.next_n
            self._journal.ask(n, config, self._context, searcher, search=self._search, turn=turn)
        start = self._clock_s()
        try:
            with time_limit(self._timeout_s):
                found = self._race(config, self.found.values()) if self._race else self._evaluator(config)
                evaluation = self._checked(config, found)
        except OutOfTime:
            evaluation = Evaluation(config, (), "failed", f"no answer within {self._timeout_s:g} s")
        except Exception as error:  # whatever a user's model raises: one sub-net less, the search goes on
            evaluation = Evaluation(config, (), "failed", f"{type(error).__name__}: {error}")
        seconds = self._clock_s() - start
        if evaluation.ok:
            self._failures = 0
            spread = self._named(evaluation.spread) if evaluation.spread else None
            values = self._named(evaluation.values)
            self._journal.result(
                n,
                values,
                spread=spread,
                source=evaluation.source,
                seconds=seconds,
                reason=evaluation.reason,
                images=evaluation.images,
            )
        else:
            self._failures += 1
            self._journal.failed(n, evaluation.reason, seconds=seconds)
        return evaluation, seconds

    def _checked(self, config: SubnetConfig, evaluation: Evaluation) -> Evaluation:
        if evaluation.config != config:
            raise InvalidInput(
                f"asked about {config.key}, the evaluator answered about {evaluation.config.key}"
            )
        if evaluation.ok and len(evaluation.values) != len(self.objectives):
            names = [objective.name for objective in self.objectives]
            raise InvalidInput(
                f"the evaluator must give one value for each of {names}, got {evaluation.values}"
            )
        return evaluation

    def _named(self, values: Sequence[float]) -> dict[str, float]:
        return {o.name: value for o, value in zip(self.objectives, values, strict=True)}

    def _answers(self, line: Mapping[str, Any]) -> bool:
        return line["kind"] == "failed" or all(o.name in line["values"] for o in self.objectives)

    def _from_line(self, config: SubnetConfig, line: Mapping[str, Any]) -> Evaluation:
        if line["kind"] == "failed":
            return Evaluation(config, (), "failed", line["reason"])
        values, spread = (
            tuple(line[what][o.name] for o in self.objectives) if line[what] else None
            for what in ("values", "spread")
        )
        images = Images.from_json(line["images"]) if line.get("images") else None
        return Evaluation(config, values or (), "ok", line["reason"], line["source"], spread, images)
