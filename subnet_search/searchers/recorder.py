"""Keeps what came of every sub-net, failures included, and knows what an earlier process has kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from search_spaces import InvalidInput, SubnetConfig, SubnetSearchError
from search_spaces.errors import in_words
from subnet_search.record import Evaluation, Images, Journal, Objective, check_objectives
from subnet_search.record.journal import Line

from .claims import SHARED, Told
from .failures import Failures

Ask = tuple[str, int]  # the searcher that was asked, and which of its questions it was


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


class TooManyFailures(SubnetSearchError):
    """Evaluations fail one after the other.

    Attributes:
        result: the `SearchResult` of what was evaluated until then.
    """

    result: Any = None


class Answer(NamedTuple):
    """What an evaluator gave for a sub-net in so many seconds, or None and the reason."""

    config: SubnetConfig
    evaluation: Evaluation | None
    reason: str
    seconds: float


class Known(NamedTuple):
    """An evaluation on record.

    Attributes:
        evaluation: as it was.
        seconds: its time.
        asked: by whom this search asked for it, if this search did.
        place: of its line among all lines.
        after: this search's last ask on record before it.
    """

    evaluation: Evaluation
    seconds: float
    asked: Ask | None = None
    place: int = 0
    after: Ask | None = None


class Recorder:
    """A search's view of a journal: an ask line before each evaluation, its answer after it.

    Args:
        objectives: what the values mean.
        journal: the record, possibly of a search that was cut off.
        context: of the evaluator; records under another one do not count.
        search: stands for one call of `search`; its asks can be looked up again by their turn.
        raced: whether a record of something stopped counts, where its rival is among what this search has seen.

    Attributes:
        found: what this search looked at by config key, in order.
        seconds: time of the evaluations in `found`, those of an earlier process included.
        seconds_here: time of the evaluations made by this process.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        journal: Journal,
        context: str,
        search: str,
        *,
        raced: bool = False,
    ) -> None:
        self.objectives = check_objectives(objectives)
        self.found: dict[str, Evaluation] = {}
        self.seconds = self.seconds_here = 0.0
        self._journal, self._context, self._search = journal, context, search
        self._known = {k: line for k, line in journal.known(context).items() if self._answers(line)}
        self._failures = self._counted()
        self._stopped: dict[str, list[Line]] = {}
        for (key, _), line in journal.stopped(context).items() if raced else ():
            if self._answers(line):
                self._stopped.setdefault(key, []).append(line)
        pending = (line for line in journal.pending() if line["context"] == context)
        self._pending: dict[str, int] = {line["key"]: line["n"] for line in pending}
        self._asks: dict[Ask, SubnetConfig] = {}
        self._last_turns: dict[str, int] = {}
        self._order: dict[
            int, tuple[int, Ask | None]
        ] = {}  # by number: place of the answer, last ask before it
        self._retrace()

    def _counted(self) -> Failures:
        """The failures on record. Those that ended a search are forgotten: what was broken may have been mended."""
        counted = Failures()
        for line in self._journal.lines():
            own = line["context"] == self._context and line["searcher"] != SHARED
            if own and line["kind"] != "ask":
                counted.add(line["key"], ok=line["kind"] == "result")
        if counted.too_many:
            self._known = {
                key: line
                for key, line in self._known.items()
                if key not in counted.in_a_row or line["kind"] == "result"
            }
        counted.end_row(broken=counted.too_many)
        return counted

    def _retrace(self) -> None:
        last: Ask | None = None
        under_way: set[int] = set()
        self._overlapped = False
        for place, line in enumerate(self._journal.lines()):
            if line["search"] == self._search and line["kind"] == "ask":
                self._overlapped |= bool(under_way)
                under_way.add(line["n"])
                last = line["searcher"], line["turn"]
                self._asks[last] = SubnetConfig(line["config"])
                self._last_turns[line["searcher"]] = line["turn"]
            elif line["search"] == self._search:
                under_way.discard(line["n"])
                self._order[line["n"]] = place, last

    def asked(self, searcher: str, turn: int) -> SubnetConfig | None:
        """What this search asked in an earlier process as question `turn` to `searcher`, if that is recorded."""
        return self._asks.get((searcher, turn))

    def asks_ahead(self, searcher: str, turn: int) -> bool:
        """Whether an earlier process asked on, from question `turn`, while several sub-nets were under way."""
        return self._overlapped and turn <= self._last_turns.get(searcher, -1)

    def known(self, config: SubnetConfig) -> Known | None:
        """What the record knows of a sub-net: in full, failed, or beaten by one that this search has seen."""
        beaten = (line for line in self._stopped.get(config.key, ()) if line["images"]["rival"] in self.found)
        line = self._known.get(config.key) or next(beaten, None)
        if line is None:
            return None
        evaluation, seconds = self._from_line(config, line), float(line["seconds"])
        if line["n"] not in self._order:
            return Known(evaluation, seconds)
        place, after = self._order[line["n"]]
        return Known(evaluation, seconds, (line["searcher"], line["turn"]), place, after)

    def on_record(self) -> Iterator[tuple[str, Evaluation, float]]:
        """What the record knows in full or as failed: who asked for it, the evaluation and its seconds."""
        for line in self._known.values():
            evaluation = self._from_line(SubnetConfig(line["config"]), line)
            yield line["searcher"], evaluation, float(line["seconds"])

    def adopt(self, told: Told) -> None:
        """Notes what another driver found, under the searcher "storage" and at no cost, unless it is on record."""
        found = told.evaluation
        if self.known(found.config) is not None:
            return
        by, n = f"evaluated by {told.driver}", self._pending.pop(found.config.key, None)
        if n is None:  # else this driver had asked for it, and died
            n = self._journal.next_n
            self._journal.ask(n, found.config, self._context, SHARED)
        if found.ok:
            values, spread = self._named(found.values), self._named(found.spread) if found.spread else None
            why = f"{found.reason}; {by}" if found.reason else by
            self._journal.result(
                n, values, spread=spread, source=found.source, reason=why, images=found.images
            )
        else:
            self._journal.failed(n, f"{found.reason}; {by}")

    def begin(self, config: SubnetConfig, searcher: str, turn: int) -> int:
        """Notes that a sub-net is about to be evaluated, under the number that is returned."""
        n = self._pending.pop(config.key, None)
        if n is None:
            n = self._journal.next_n
            self._journal.ask(n, config, self._context, searcher, search=self._search, turn=turn)
        return n

    def end(self, n: int, answer: Answer) -> Evaluation:
        """Writes the answer to number `n`; what cannot be compared is a failure."""
        evaluation = self._checked(answer)
        self._failures.add(evaluation.config.key, ok=evaluation.ok)
        if evaluation.ok:
            spread = self._named(evaluation.spread) if evaluation.spread else None
            self._journal.result(
                n,
                self._named(evaluation.values),
                spread=spread,
                source=evaluation.source,
                seconds=answer.seconds,
                reason=evaluation.reason,
                images=evaluation.images,
            )
        else:
            self._journal.failed(n, evaluation.reason, seconds=answer.seconds)
        self.seconds_here += answer.seconds
        return evaluation

    def take(self, evaluation: Evaluation, seconds: float) -> None:
        """Counts an evaluation among what this search looked at.

        Raises:
            TooManyFailures: when so many evaluations made by this process failed in a row that it is no chance.
        """
        self.found[evaluation.config.key] = evaluation
        self.seconds += seconds
        if self._failures.too_many:
            raise TooManyFailures(
                f"{len(self._failures.in_a_row)} evaluations in a row failed, the last one of "
                f"{evaluation.config.key}: {evaluation.reason}. Mend the cause and start the same search again: "
                + (
                    "it evaluates these anew, all others are recorded"
                    if self._journal.is_kept
                    else "with run= it goes on from a record; what was found is the error's result"
                )
            )

    def _checked(self, answer: Answer) -> Evaluation:
        config, evaluation = answer.config, answer.evaluation
        if answer.reason:
            return Evaluation(config, (), "failed", answer.reason)
        try:
            if evaluation is None:
                raise InvalidInput("the evaluator answered None instead of an Evaluation")
            if evaluation.config != config:
                raise InvalidInput(
                    f"asked about {config.key}, the evaluator answered about {evaluation.config.key}"
                )
            if evaluation.ok and len(evaluation.values) != len(self.objectives):
                names = [objective.name for objective in self.objectives]
                raise InvalidInput(
                    f"the evaluator must give one value for each of {names}, got {evaluation.values}"
                )
        except Exception as error:  # it may have returned anything
            return Evaluation(config, (), "failed", in_words(error))
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
