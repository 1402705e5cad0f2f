"""Several evaluations under way at a time, in a pool without processes that answers in an order of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import pytest

from search_spaces import InvalidInput, SubnetConfig, SubnetSearchError
from subnet_search.record import Evaluation, create_run, open_run
from subnet_search.searchers import (
    Answer,
    Budget,
    EvaluatorFactory,
    SearchResult,
    Workers,
    make_searcher,
    search,
)
from tests.workers.places import COSTS, OBJECTIVES, SPACE, Plain, worth


class Juggler:
    """Evaluates `count` at a time: each takes as long as its key says; dies before an answer, if told so."""

    objectives, context = OBJECTIVES, "toy1"

    def __init__(self, count: int, dies_before: int | None = None) -> None:
        self.count, self.dies_before = count, dies_before
        self.now, self.most = 0.0, 0
        self.running: dict[str, tuple[float, SubnetConfig]] = {}
        self.submitted: list[SubnetConfig] = []
        self.answered = 0

    def submit(self, config: SubnetConfig, seen: Iterable[Evaluation]) -> None:
        self.submitted.append(config)
        self.running[config.key] = self.now + 1 + int(config.key[:4], 16) % 7, config
        self.most = max(self.most, len(self.running))

    def next(self) -> Answer:
        if self.answered == self.dies_before:
            raise KeyboardInterrupt
        self.answered += 1
        key = min(self.running, key=lambda key: (self.running[key][0], key))
        self.now, config = self.running.pop(key)
        return Answer(config, worth(config), "", 1.0)

    def note(self) -> str:
        return f"{self.count} jugglers"

    def close(self) -> None:
        self.running.clear()


def go(
    pool: Juggler | EvaluatorFactory, searcher: str, evaluations: int = 40, **more: object
) -> SearchResult:
    budget = Budget(evaluations=evaluations)
    return search(SPACE, pool, searcher, budget=budget, costs=COSTS, progress=False, **more)  # type: ignore[arg-type]


def test_as_many_are_under_way_as_there_are_workers_and_the_budget_is_met_exactly() -> None:
    pool = Juggler(8)
    result = go(pool, "nsga2")
    assert pool.most == 8
    assert len(result.evaluations) == len(pool.submitted) == len(set(pool.submitted)) == 40
    assert result.ended == "evaluations"
    assert pool.running == {}
    assert [e.config for e in result.evaluations] != pool.submitted  # told as they came


def test_one_worker_at_a_time_is_the_search_in_this_process() -> None:
    assert go(Juggler(1), "nsga2") == go(EvaluatorFactory("tests.workers.places:plain"), "nsga2")


def test_no_worker_waits_for_the_last_control() -> None:
    pool = Juggler(8)
    busy: list[int] = []
    step = pool.next

    def watched() -> Answer:
        busy.append(len(pool.running))
        return step()

    pool.next = watched  # type: ignore[method-assign]
    go(pool, "nsga2")
    assert busy == [8] * 33 + list(range(7, 0, -1))


@pytest.mark.parametrize(
    ("searcher", "answers", "workers"),
    [
        ("nsga2", 13, 6),
        ("random", 31, 9),
        ("progressive", 23, 6),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in itertools.product(("guided", "nsga2", "tpe", "progressive"), (17, 31), (1, 6, 9))
        ),
    ],
)
def test_a_search_that_died_goes_on_without_loss_and_pays_for_nothing_twice(
    tmp_path: Path, searcher: str, answers: int, workers: int
) -> None:
    with create_run(tmp_path / "run", "") as run:
        with pytest.raises(KeyboardInterrupt):
            go(Juggler(6, dies_before=answers), searcher, run=run)
        before = [line["key"] for line in run.journal.lines() if line["kind"] == "result"]
        pending = [line["key"] for line in run.journal.pending()]
    assert len(before) == answers
    assert 0 < len(pending) <= 6
    with open_run(tmp_path / "run") as run:
        pool = Juggler(workers)
        result = go(pool, searcher, run=run)
        asks = [line["key"] for line in run.journal.lines() if line["kind"] == "ask"]
    found = [e.config.key for e in result.evaluations]
    assert found[:answers] == before  # told in the same order, so the searcher knew the same
    assert [c.key for c in pool.submitted[: len(pending)]] == pending
    assert sorted(before + [c.key for c in pool.submitted]) == sorted(found) == sorted(asks)
    assert len(found) == 40


@pytest.mark.parametrize("searcher", ["nsga2", pytest.param("guided", marks=pytest.mark.slow)])
def test_a_search_that_was_finished_by_many_is_repeated_by_one_without_a_new_evaluation(
    tmp_path: Path, searcher: str
) -> None:
    with create_run(tmp_path / "run", "") as run:
        first = go(Juggler(7), searcher, run=run)
        for workers in (1, 7):
            again = Juggler(workers)
            assert go(again, searcher, run=run) == first
            assert again.submitted == []


def test_a_searcher_that_needs_an_answer_first_is_given_one() -> None:
    result, alone = go(Juggler(8), "progressive"), go(Juggler(1), "progressive")
    path = make_searcher("progressive", SPACE, OBJECTIVES, costs=COSTS)
    walked = []
    for _ in range(12):
        walked.append(path.ask())
        path.tell(worth(walked[-1]))
    assert set(walked) <= {e.config for e in result.evaluations} & {e.config for e in alone.evaluations}


@pytest.mark.parametrize("count", [1, 8])
def test_a_searcher_that_repeats_itself_for_ever_ends_the_search(count: int) -> None:
    class Stubborn:
        told = 0

        def ask(self) -> SubnetConfig:
            return SPACE.smallest() if self.told else SPACE.largest()

        def tell(self, evaluation: Evaluation) -> None:
            self.told += 1

    result = search(
        SPACE, Juggler(count), Stubborn(), budget=Budget(evaluations=40), costs=COSTS, progress=False
    )
    assert result.ended == "exhausted"
    assert {SPACE.smallest(), SPACE.largest()} <= {e.config for e in result.evaluations}


def test_a_space_that_is_smaller_than_the_budget_ends_the_search() -> None:
    result = go(Juggler(8), "nsga2", evaluations=1000, limits={"macs": 14})
    rows = SPACE.encode([e.config for e in result.evaluations])
    assert result.ended == "exhausted"
    assert (COSTS.macs(rows) <= 30).all()
    assert {e.config for e in result.evaluations} == {
        e.config for e in go(Juggler(1), "nsga2", evaluations=1000, limits={"macs": 14}).evaluations
    }


def test_the_bar_tells_of_the_workers(capfd: pytest.CaptureFixture[str]) -> None:
    search(SPACE, Juggler(4), "random", budget=Budget(evaluations=20), costs=COSTS)
    last = capfd.readouterr().err.splitlines()[-1]
    assert "4 jugglers, hypervolume" in last


def test_minutes_count_what_all_workers_do_at_the_same_time(tmp_path: Path) -> None:
    pool = Juggler(6)
    ticks = itertools.count()
    budget = Budget(minutes=0.1)  # six seconds of six workers
    with create_run(tmp_path / "run", "") as run:
        result = search(
            SPACE, pool, "random", budget=budget, costs=COSTS, progress=False, run=run,
            clock_s=lambda: next(ticks) / 1e6,
        )  # fmt: skip
    assert len(result.evaluations) == 6 * 6 + 5  # those under way in the end are waited for
    assert result.ended == "minutes"


def test_evaluators_that_cannot_travel_and_odd_workers_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"cannot travel to workers.*EvaluatorFactory\(.*workers=1"):
        search(SPACE, Plain(), budget=Budget(evaluations=3), workers=2)
    for wrong in (0, True, 2.5):
        with pytest.raises(InvalidInput, match="workers must be a whole number from 1, got"):
            Workers(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"GPUs of a worker must be whole, or less than 1, got 1\.5"):
        Workers(2, gpus_each=1.5)
    with pytest.raises(InvalidInput, match="GPUs of a worker must be a number from 0, got -1"):
        Workers(2, gpus_each=-1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plain", 'named "package.module:factory", got'),
        ("tests.workers.nowhere:plain", "cannot be imported: No module named"),
        ("tests.workers.places:plane", "has no callable 'plane'; did you mean 'plain'"),
        ("tests.workers.places:worth", "evaluator tests.workers.places:worth .* fails: TypeError"),
        ("builtins:dict", "must return an evaluator, callable and with .objectives, got dict"),
    ],
)
def test_a_factory_that_makes_no_evaluator_is_refused(name: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        go(EvaluatorFactory(name), "random")


def test_ten_failures_in_a_row_end_a_search_of_many_too(tmp_path: Path) -> None:
    class Failing(Juggler):
        def next(self) -> Answer:
            return super().next()._replace(evaluation=None, reason="RuntimeError: no memory left")

    with create_run(tmp_path / "run", "") as run:
        with pytest.raises(SubnetSearchError, match="10 evaluations in a row failed"):
            go(Failing(4), "random", run=run)
        assert len(run.journal.pending()) in (3, 4)
        assert len(go(Juggler(4), "random", run=run).evaluations) == 40
