"""Metrics and evaluators that raise, hang, end the process or answer nonsense."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from torch import Tensor

from benchmarks.faults.child import Ended, command
from benchmarks.faults.road import Road, Row
from search_spaces import CostTable, Knob, SearchSpace, SubnetConfig
from subnet_search.record import Evaluation, Objective, Run, create_run, open_run
from subnet_search.record.run import JOURNAL
from subnet_search.searchers import Budget, SearchResult, TooManyFailures, search

Odd = Callable[[], Any]

CALLS = 0  # of `confidence` by this process
ODD: dict[int, Odd] = {}  # what a call does instead of answering, by its number; set in a forked child


def confidence(logits: Tensor, targets: Tensor) -> float:
    """The metric of the runs that are broken: the mean of the largest probability, in percent."""
    global CALLS
    CALLS += 1
    if CALLS in ODD:
        answer: float = ODD[CALLS]()
        return answer
    return 100 * float(logits.softmax(dim=1).amax(dim=1).mean())  # [num_images, num_classes]


def _raise(error: BaseException) -> NoReturn:
    raise error


def _recurse() -> Any:
    return _recurse()


def _compute() -> NoReturn:
    while True:
        with suppress(Exception):
            sum(range(1000))


def _sleep() -> NoReturn:
    while True:
        with suppress(Exception):  # nothing that hangs may keep its end from coming
            time.sleep(600)


ONE_LOST: dict[str, Odd] = {
    "raises": partial(_raise, RuntimeError("no memory left")),
    "raises without a word": partial(_raise, ValueError()),
    "raises lines of text": partial(_raise, RuntimeError('first "line"\nsecond line\r\x1b[31m\0')),
    "raises MemoryError": partial(_raise, MemoryError()),
    "calls sys.exit": partial(_raise, SystemExit(0)),
    "recurses without end": _recurse,
    "returns NaN": lambda: float("nan"),
    "returns inf": lambda: float("inf"),
    "returns nothing": lambda: None,
    "returns a text": lambda: "95 %",
    "returns two numbers": lambda: np.ones(2),
    "hangs (sleeps)": _sleep,
    "hangs (computes)": _compute,
}
ENDED: dict[str, tuple[Odd, int]] = {
    "raises KeyboardInterrupt": (partial(_raise, KeyboardInterrupt()), 130),
    "ends the process": (lambda: os._exit(3), 3),
    "crashes the process": (lambda: os.kill(os.getpid(), signal.SIGSEGV), -signal.SIGSEGV),
}
PLACES = (1, 7)  # the number of the evaluation that goes wrong


def odd_metrics(road: Road) -> list[Row]:
    """The metric of the recipe goes wrong in the middle of `search`; the same command again, where it does not."""
    rows, out = [], road.disk.folder / "odd"
    for fault, odd in ONE_LOST.items():
        row = Row(f"a metric that {fault}", "search", lost="1 evaluation, on record as failed")
        for place in road.picked(list(PLACES), len(PLACES)):
            what, folder = f"evaluation {place}", road.before("search", out)
            first = _search(folder, {place: odd})
            failed = _lines(folder, "failed")
            row.add(first, _search(folder, {}), wanted={0}, what=what)
            row.told = row.told or (f"failed: {failed[0]['reason']}" if failed else "")
            row.check(len(failed) == 1, what, f"{len(failed)} evaluations on record as failed")
            row.check(len(_lines(folder, "result")) == 13, what, "other evaluations are missing")
            row.check(_lines(folder, "failed") == failed, what, "going on has changed the record")
        rows.append(row)
    for fault, (odd, code) in ENDED.items():
        row = Row(f"a metric that {fault}", "search", lost="1 evaluation, made again")
        for place in road.picked(list(PLACES), len(PLACES)):
            what, folder = f"evaluation {place}", road.before("search", out)
            row.add(_search(folder, {place: odd}), _search(folder, {}), wanted={code}, what=what)
            row.compare(road.differences(folder, "search"), what)
        rows.append(row)
    return [*rows, _always(road, out)]


def _always(road: Road, out: Path) -> Row:
    row = Row("a metric that always raises", "search", lost="10 evaluations, made again")
    folder, odd = road.before("search", out), ONE_LOST["raises"]
    first = _search(folder, dict.fromkeys(range(1, 1000), odd))
    row.check(len(_lines(folder, "failed")) == 10, "always", "not ten are on record as failed")
    row.check("10 evaluations in a row failed" in first.told, "always", f"the message is {first.message!r}")
    row.check("no memory left" in first.told, "always", "the message does not tell the cause")
    row.add(first, _search(folder, {}), wanted={1}, what="always")
    row.check(
        len(_lines(folder, "result")) == 14, "always", "the search did not go on, or lacks what had failed"
    )
    return row


def _search(folder: Path, odd: dict[int, Odd]) -> Ended:
    return command(["search", str(folder)], folder, prepare=lambda: ODD.update(odd))


def _lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / JOURNAL).read_text("utf-8").splitlines()]
    return [line for line in lines if line["kind"] == kind]


SPACE = SearchSpace((Knob("stem", (8, 16, 24, 32)), Knob("head", tuple(range(8, 72, 8)))))
COSTS = CostTable(SPACE.names, (8, 8), {("stem",): 3, ("head", "stem"): 5}, {(): 1}, {(): 4}, ({(): 4},))
NUM_EVALUATIONS = 12


class Odds:
    """An evaluator of one's own; `answers` stand in the place of some of its own, by the number of the call."""

    objectives = (Objective("score", "max"), Objective("macs", "min"))
    context = "odd"

    def __init__(self, answers: dict[int, Callable[[SubnetConfig], Any]]) -> None:
        self.calls, self.answers = 0, answers

    def __call__(self, config: SubnetConfig) -> Evaluation:
        self.calls += 1
        if self.calls in self.answers:
            answer: Evaluation = self.answers[self.calls](config)
            return answer
        return Evaluation(config, (float(np.sqrt(config["stem"] + config["head"])), float(config["stem"])))


ANSWERS: dict[str, Callable[[SubnetConfig], Any]] = {
    "raises": lambda config: _raise(RuntimeError("no memory left")),
    "hangs": lambda config: _sleep(),
    "returns nothing": lambda config: None,
    "returns NaN": lambda config: Evaluation(config, (float("nan"), 1.0)),
    "returns inf": lambda config: Evaluation(config, (1.0, float("-inf"))),
    "returns a text": lambda config: Evaluation(config, ("high", 1.0)),  # type: ignore[arg-type]
    "returns a number too large": lambda config: Evaluation(config, (10**400, 1.0)),
    "returns too few values": lambda config: Evaluation(config, (1.0,)),
    "returns too many values": lambda config: Evaluation(config, (1.0, 1.0, 1.0)),
    "returns a spread too short": lambda config: Evaluation(config, (1.0, 1.0), spread=(1.0,)),
    "answers about another sub-net": lambda config: Evaluation(SPACE.smallest(), (1.0, 1.0)),
    "answers about what is no sub-net": lambda config: Evaluation(SubnetConfig({"x": 1}), (1.0, 1.0)),
}


def odd_evaluators(road: Road) -> list[Row]:
    """An evaluator of one's own in a search from Python; what it says of other sub-nets stays as it is."""
    unbroken, rows, out = _go({}), [], road.disk.folder / "own"
    for number, (fault, answer) in enumerate(ANSWERS.items()):
        row = Row(f"an evaluator that {fault}", "search(...)", lost="1 evaluation, on record as failed")
        for place in road.picked([2, 5, 9], 3):
            what, folder = f"evaluation {place}", out / f"{number} {place}"
            with create_run(folder, "") as run:
                found = _go({place: answer}, run)
            with open_run(folder) as run:
                again = _go({}, run)
            row.tries += 1
            row.codes["no exception"] += 1
            wrong = found.evaluations[place - 1]
            others = [e for e in found.evaluations if e is not wrong]
            wanted = [e for n, e in enumerate(unbroken.evaluations, 1) if n != place]
            row.told = row.told or f"failed: {wrong.reason}"
            row.check(not wrong.ok and wrong not in found.front, what, "it counts as an answer")
            row.check(others == wanted, what, "it changed other evaluations")
            row.resumed += 1
            row.unequal += again != found
            row.check(again == found, what, "going on with it came to something else")
        rows.append(row)
    return [*rows, _stopped(out / "stopped", unbroken), _all_odd(out / "all", unbroken)]


def _stopped(folder: Path, unbroken: SearchResult) -> Row:
    row = Row("an evaluator that raises KeyboardInterrupt", "search(...)", lost="1 evaluation, made again")
    row.tries, row.resumed = 1, 1
    with create_run(folder, "") as run:
        try:
            _go({5: lambda config: _raise(KeyboardInterrupt())}, run)
        except KeyboardInterrupt:
            row.codes["KeyboardInterrupt"] += 1
    with open_run(folder) as run:
        row.check(_go({}, run) == unbroken, "evaluation 5", "it is not the unbroken search")
    row.check(bool(row.codes), "evaluation 5", "Ctrl-C did not stop it")
    row.unequal = len(row.harm)
    return row


def _all_odd(folder: Path, unbroken: SearchResult) -> Row:
    row = Row("an evaluator that always raises", "search(...)", lost="10 evaluations, made again")
    row.tries, row.resumed, what = 1, 1, "always"
    with create_run(folder, "") as run:
        try:
            _go(dict.fromkeys(range(1, 99), ANSWERS["raises"]), run)
        except TooManyFailures as error:
            row.codes["TooManyFailures"] += 1
            row.told = str(error)
    with open_run(folder) as run:
        row.check(len(run.journal.lines()) == 20, what, "not ten are on record as failed")
        ended = _go({}, run)
    row.check(bool(row.codes), what, "it did not end")
    row.unequal = int(ended != unbroken)
    row.check(ended == unbroken, what, "it is not the unbroken search")
    return row


def _go(answers: dict[int, Callable[[SubnetConfig], Any]], run: Run | None = None) -> SearchResult:
    """A search whose proposals do not depend on the values that it is told."""
    odds, budget = Odds(answers), Budget(evaluations=NUM_EVALUATIONS)
    return search(SPACE, odds, "random", budget=budget, costs=COSTS, run=run, progress=False, timeout_s=0.3)
