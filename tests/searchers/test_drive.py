from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from search_spaces import CostTable, InvalidInput, Knob, SearchSpace, SubnetConfig
from subnet_search.record import Evaluation, Journal, Objective, ParetoFront, create_run, open_run
from subnet_search.searchers import (
    SEARCHERS,
    Budget,
    Listed,
    Searcher,
    SearchResult,
    TooManyFailures,
    make_searcher,
    search,
    spread_out,
)

SPACE = SearchSpace(
    (
        Knob("stem", (8, 16, 24, 32)),
        Knob("block", (0, 1), "depth"),
        Knob("block.hidden", tuple(range(8, 72, 8))),
        Knob("head", tuple(range(8, 72, 8))),
    ),
    {"block.hidden": (("block",),)},
)
MACS = {("stem",): 3, ("block", "block.hidden", "stem"): 2, ("head", "stem"): 5}
COSTS = CostTable(SPACE.names, (8, 1, 8, 8), MACS, {(): 1}, {(): 4}, ({(): 4},))
SMALL = Budget(evaluations=20)
SEARCHERS_CUT_OFF = ("guided", "nsga2", "nsga3", "tpe", "qmc", "random", "gp", "progressive")


def macs(config: SubnetConfig) -> float:
    return float(COSTS.macs(SPACE.encode([config]))[0])


class Toy:
    """Counts its calls; fails where `fails` says so; its clock ticks `seconds` per call."""

    objectives = (Objective("score_percent", "max"), Objective("macs", "min"))
    context = "weights1"

    def __init__(self, fails: Callable[[int, SubnetConfig], bool] = lambda n, config: False) -> None:
        self.asked: list[SubnetConfig] = []
        self.fails = fails
        self.now = 0.0
        self.seconds = 1.0

    def __call__(self, config: SubnetConfig) -> Evaluation:
        self.asked.append(config)
        self.now += self.seconds
        if self.fails(len(self.asked), config):
            raise RuntimeError("no memory left")
        score = (
            60
            + sum(np.sqrt(config[n]) for n in ("stem", "head"))
            + config["block"] * config["block.hidden"] / 8
        )
        return Evaluation(config, (score, macs(config)), spread=(0.5, 0.0))


def go(toy: Toy, searcher: str | Searcher = "nsga2", budget: Budget = SMALL, **more: object) -> SearchResult:
    return search(SPACE, toy, searcher, budget=budget, costs=COSTS, progress=False, **more)  # type: ignore[arg-type]


def content(journal: Journal) -> list[dict[str, object]]:
    """All but the times, which no two searches share."""
    return [{name: value for name, value in line.items() if name != "seconds"} for line in journal.lines()]


@pytest.mark.parametrize("searcher", [name for name in SEARCHERS if name not in ("gp", "uniform")])
def test_the_record_holds_controls_then_the_searcher_within_the_budget(tmp_path: Path, searcher: str) -> None:
    toy = Toy()
    with create_run(tmp_path / "run", "") as run:
        result = go(toy, searcher, run=run)
        answers = [line for line in run.journal.lines() if line["kind"] == "result"]
    who = Counter(line["searcher"] for line in answers)
    expected = (
        {"uniform": 5, "random": 15} if searcher == "random" else {"uniform": 5, "random": 4, searcher: 11}
    )
    assert who == expected
    assert [line["config"] for line in answers] == [dict(config) for config in toy.asked]
    assert [e.config for e in result.evaluations] == toy.asked
    assert len(set(toy.asked)) == 20
    assert answers[0]["config"] == dict(SPACE.largest())
    assert {line["context"] for line in answers} == {"weights1"}
    assert answers[0]["spread"] == {"score_percent": 0.5, "macs": 0.0}


def test_uniform_widths_alone_have_no_controls(tmp_path: Path) -> None:
    toy = Toy()
    with create_run(tmp_path / "run", "") as run:
        result = go(toy, "uniform", run=run)
        assert {line["searcher"] for line in run.journal.lines() if line["kind"] == "ask"} == {"uniform"}
    assert set(toy.asked) == {SPACE.uniform(share / 100) for share in range(1, 101)}
    assert result.ended == "exhausted"
    few = Toy()
    go(few, "uniform", Budget(evaluations=5))
    assert few.asked == toy.asked[:5]  # a larger budget goes on
    shares = sorted(macs(config) / macs(SPACE.largest()) for config in few.asked)
    assert all(after - before < 0.4 for before, after in itertools.pairwise(shares))


def test_a_list_is_searched_under_its_own_name_and_within_the_limits(tmp_path: Path) -> None:
    listed = [SPACE.uniform(share) for share in (0.3, 0.45)] + [SPACE.smallest()]
    toy = Toy()
    with create_run(tmp_path / "run", "") as run:
        result = go(toy, Listed(listed), name="mine", run=run, limits={"macs": 150})
        answers = [line for line in run.journal.lines() if line["kind"] == "result"]
        again = Toy()
        assert go(again, Listed(listed), name="mine", run=run, limits={"macs": 150}) == result
    assert [SubnetConfig(line["config"]) for line in answers if line["searcher"] == "mine"] == [
        config for config in listed if config in toy.asked[9:]
    ]
    assert set(listed) <= set(toy.asked)
    assert again.asked == []
    assert result.ended == "exhausted"


@pytest.mark.parametrize("name", ["uniform", "random"])
def test_a_searcher_of_ones_own_does_not_take_the_place_of_a_control(name: str) -> None:
    toy = Toy()
    with pytest.raises(InvalidInput, match=rf"must not be named '{name}': .* control .*; give another name="):
        go(toy, Listed([SPACE.smallest()]), name=name)
    own = type(name, (Listed,), {})
    with pytest.raises(InvalidInput, match=f"must not be named '{name}'"):
        go(toy, own([SPACE.smallest()]))
    assert toy.asked == []


def test_the_searchers_of_this_package_given_as_objects_have_both_controls(tmp_path: Path) -> None:
    for name in ("uniform", "random"):
        searcher = make_searcher(name, SPACE, Toy.objectives, costs=COSTS)
        with create_run(tmp_path / name, "") as run:
            go(Toy(), searcher, run=run)
            who = {line["searcher"] for line in run.journal.lines() if line["kind"] == "ask"}
        assert who == {"uniform", "random", type(searcher).__name__}


def test_a_searcher_of_ones_own_that_leaves_the_limits_or_the_space_is_refused() -> None:
    with pytest.raises(
        InvalidInput, match=r"Listed proposed \w+, which does not meet the limits \{'macs': 100"
    ):
        go(Toy(), Listed([SPACE.largest()]), limits={"macs": 100})
    with pytest.raises(InvalidInput, match="unknown knob"):
        go(Toy(), Listed([SubnetConfig({"stm": 8})]))


def test_a_list_spread_out_begins_with_its_ends_and_then_always_halves_the_widest_gap() -> None:
    configs = [SubnetConfig({"n": n}) for n in range(9)]
    assert [config["n"] for config in spread_out(configs)] == [0, 8, 4, 2, 6, 1, 3, 5, 7]
    for count in range(40):
        configs = [SubnetConfig({"n": n}) for n in range(count)]
        assert sorted(config["n"] for config in spread_out(configs)) == list(range(count))


def test_the_front_is_that_of_the_evaluations() -> None:
    result = go(Toy())
    assert result.front == ParetoFront.of(Toy.objectives, result.evaluations)
    assert len(result.front) > 2
    assert result.nearest == {}


def test_the_same_search_gives_the_same_result_with_and_without_a_run(tmp_path: Path) -> None:
    with create_run(tmp_path / "run", "") as run:
        assert go(Toy(), run=run) == go(Toy())
    assert go(Toy(), seed=1) != go(Toy())


def test_nothing_is_paid_for_twice_and_a_larger_budget_goes_on(tmp_path: Path) -> None:
    with create_run(tmp_path / "run", "") as run:
        first = go(Toy(), run=run)
        before = run.journal.lines()
        again = Toy()
        assert go(again, run=run) == first
        assert (again.asked, run.journal.lines()) == ([], before)
        more = Toy()
        longer = go(more, budget=Budget(evaluations=30), run=run)
    assert len(longer.evaluations) == 30
    assert len(more.asked) < 30
    assert longer == go(Toy(), budget=Budget(evaluations=30))


def test_a_searcher_takes_what_another_one_has_paid_for(tmp_path: Path) -> None:
    with create_run(tmp_path / "run", "") as run:
        go(Toy(), "nsga2", run=run)
        second = Toy()
        result = go(second, "tpe", run=run)
    assert result == go(Toy(), "tpe")
    assert len(second.asked) <= 11  # the controls were known


def test_another_context_is_evaluated_afresh(tmp_path: Path) -> None:
    with create_run(tmp_path / "run", "") as run:
        go(Toy(), run=run)
        retrained = Toy()
        go(retrained, run=run, context="weights2")
    assert len(retrained.asked) == 20


@pytest.mark.parametrize(
    ("searcher", "lost"),
    [
        pytest.param(searcher, lost, marks=[] if lost == quick else [pytest.mark.slow])
        for searcher, quick in zip(SEARCHERS_CUT_OFF, (17, 6, 1, 17, 1, 6, 6, 17), strict=True)
        for lost in (1, 6, 17)
    ],
)
def test_a_search_cut_off_and_continued_is_the_unbroken_one(tmp_path: Path, searcher: str, lost: int) -> None:
    budget = Budget(evaluations={"gp": 24, "guided": 30}.get(searcher, 20))
    with create_run(tmp_path / "unbroken", "") as unbroken:
        expected = go(Toy(), searcher, budget, run=unbroken)

        def interrupt(n: int, config: SubnetConfig) -> bool:
            if n == lost:
                raise KeyboardInterrupt
            return False

        with create_run(tmp_path / "broken", "") as run:
            with pytest.raises(KeyboardInterrupt):
                go(Toy(interrupt), searcher, budget, run=run)
            assert len(run.journal.pending()) == 1
        with open_run(tmp_path / "broken") as run:
            toy = Toy()
            assert go(toy, searcher, budget, run=run) == expected
            assert content(run.journal) == content(unbroken.journal)
            assert len(toy.asked) == len(expected.evaluations) - lost + 1


SCRIPT = """
import sys, time
from subnet_search.record import create_run, open_run
sys.path.insert(0, sys.argv[1])
from tests.searchers.test_drive import Toy, go
from pathlib import Path

class Slow(Toy):
    def __call__(self, config):
        time.sleep(0.02)
        return super().__call__(config)

folder = Path(sys.argv[2])
with (open_run(folder) if folder.exists() else create_run(folder, "")) as run:
    go(Slow(), run=run)
"""


@pytest.mark.slow
def test_a_search_killed_outright_and_continued_has_the_record_of_the_unbroken_one(tmp_path: Path) -> None:
    root, folder = Path(__file__).parents[2], tmp_path / "run"
    command = [sys.executable, "-c", SCRIPT, str(root), str(folder)]
    for least in (3, 11):  # lines in the journal before the kill
        process = subprocess.Popen(command, cwd=root)
        journal = folder / "evaluations.jsonl"
        while not journal.exists() or journal.read_bytes().count(b"\n") < least:
            assert process.poll() is None
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = journal.read_bytes()
    assert subprocess.run(command, cwd=root, check=False).returncode == 0
    assert journal.read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    with create_run(tmp_path / "unbroken", "") as unbroken, open_run(folder) as run:
        go(Toy(), run=unbroken)
        assert content(run.journal) == content(unbroken.journal)


def test_a_search_stopped_while_it_evaluates_asks_that_again(tmp_path: Path) -> None:
    class Stopped(Toy):
        def __call__(self, config: SubnetConfig) -> Evaluation:
            if len(self.asked) == 6:
                raise KeyboardInterrupt
            return super().__call__(config)

    with create_run(tmp_path / "run", "") as run:
        with pytest.raises(KeyboardInterrupt):
            go(Stopped(), run=run)
        assert len(run.journal.pending()) == 1
        assert not [line for line in run.journal.lines() if line["kind"] == "failed"]
        assert go(Toy(), run=run) == go(Toy())


def test_wall_clocks_and_the_times_of_files_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(10**9, 0, -3600))  # an hour back at each look
    monkeypatch.setattr(time, "time", lambda: float(next(ticks)))
    with create_run(tmp_path / "run", "") as run:
        run.event("begin", stage="search")
        assert go(Toy(), run=run) == go(Toy())
    for path in (tmp_path / "run").iterdir():
        os.utime(path, (4e9, 4e9))
    again = Toy()
    with open_run(tmp_path / "run") as run:
        assert go(again, run=run) == go(Toy())
    assert again.asked == []


def test_a_failing_evaluation_is_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    with create_run(tmp_path / "run", "") as run:
        result = go(Toy(lambda n, config: n % 3 == 0), run=run)
        failed = [line for line in run.journal.lines() if line["kind"] == "failed"]
    assert [e.ok for e in result.evaluations] == [n % 3 != 0 for n in range(1, 21)]
    assert {line["reason"] for line in failed} == {"RuntimeError: no memory left"}
    assert len(failed) == 6
    assert all(evaluation.ok for evaluation in result.front)


def test_ten_failures_in_a_row_end_the_search_and_a_mended_evaluator_tries_them_again(tmp_path: Path) -> None:
    kept: list[SearchResult] = []
    with create_run(tmp_path / "run", "") as run:
        for works in (2, 0):  # times, before it is mended
            with pytest.raises(TooManyFailures, match=r"in a row failed, .*no memory left.*Mend") as told:
                go(Toy(lambda n, config, works=works: n > works), run=run, keep=kept.append)  # type: ignore[misc]
            assert "it evaluates these anew" in str(told.value)
            assert told.value.result == kept[-1]
            assert [e.ok for e in kept[-1].evaluations[:12]] == [True] * 2 + [False] * 10
        mended = Toy()
        assert go(mended, run=run) == go(Toy())
        assert len(mended.asked) == 18
        assert go(Toy(), run=run) == go(Toy())


def test_what_was_found_before_everything_failed_is_not_lost_without_a_run() -> None:
    with pytest.raises(TooManyFailures, match="what was found is the error's result") as told:
        go(Toy(lambda n, config: n > 5))
    assert len(told.value.result.front) > 0
    assert len(told.value.result.evaluations) == 15


def test_a_search_goes_on_where_most_subnets_fail_one_by_one() -> None:
    ok = [n % 6 == 1 and not 31 <= n <= 45 for n in range(1, 61)]
    result = go(Toy(lambda n, config: not ok[n - 1]), budget=Budget(60), searcher="random")
    assert [e.ok for e in result.evaluations] == ok


def test_an_error_that_cannot_say_what_it_is_counts_as_a_failure() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    def fails(n: int, config: SubnetConfig) -> bool:
        if n == 3:
            raise Mute
        return False

    assert [e.reason for e in go(Toy(fails)).evaluations if not e.ok] == ["Mute"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda config: Evaluation(config, (float("nan"), 1.0)), "finite values"),
        (lambda config: Evaluation(config, (1.0,)), "one value for each of"),
        (lambda config: Evaluation(SPACE.smallest(), (1.0, 1.0)), "answered about"),
        (lambda config: None, "answered None"),
        (lambda config: 0.5, "AttributeError"),
    ],
)
def test_answers_that_cannot_be_compared_are_failures(
    answer: Callable[[SubnetConfig], Evaluation], reason: str
) -> None:
    class Odd(Toy):
        def __call__(self, config: SubnetConfig) -> Evaluation:
            return answer(config) if config == SPACE.largest() else super().__call__(config)

    first = go(Odd()).evaluations[0]
    assert (first.config, first.ok) == (SPACE.largest(), False)
    assert reason in first.reason


def test_an_evaluation_that_hangs_has_failed_and_the_search_goes_on(tmp_path: Path) -> None:
    class Hanging(Toy):
        def __call__(self, config: SubnetConfig) -> Evaluation:
            answer = super().__call__(config)
            while len(self.asked) in (2, 7):
                with suppress(Exception):  # nothing that hangs may keep its end from coming
                    time.sleep(60)
            return answer

    with create_run(tmp_path / "run", "") as run:
        result = go(Hanging(), run=run, timeout_s=0.03)
        failed = [line for line in run.journal.lines() if line["kind"] == "failed"]
        again = Toy()
        assert go(again, run=run) == result
    assert [n for n, e in enumerate(result.evaluations, start=1) if not e.ok] == [2, 7]
    assert {line["reason"] for line in failed} == {"no answer within 0.03 s"}
    assert len(result.evaluations) == 20
    assert again.asked == []
    with pytest.raises(InvalidInput, match="timeout_s must be a positive number of seconds or None, got 0"):
        go(Toy(), timeout_s=0)


def test_everything_evaluated_meets_a_limit_on_a_cost() -> None:
    toy = Toy()
    result = go(toy, limits={"macs": 60})
    assert len(toy.asked) == 20
    assert max(map(macs, toy.asked)) <= 60
    assert result.evaluations[0].config["block"] == 1


def test_a_limit_on_a_measured_objective_decides_who_enters_the_front() -> None:
    free, limited = go(Toy()), go(Toy(), limits={"score_percent": 72})
    assert [e.config for e in limited.evaluations] == [e.config for e in free.evaluations]
    assert 0 < len(limited.front) < len(free.front)
    assert all(evaluation.values[0] >= 72 for evaluation in limited.front)


def test_a_measured_limit_nothing_meets_is_answered_with_the_nearest_value() -> None:
    result = go(Toy(), limits={"score_percent": 99})
    assert len(result.front) == 0
    assert result.nearest == {"score_percent": max(e.values[0] for e in result.evaluations)}


def test_impossible_wishes_are_refused_before_anything_is_evaluated(tmp_path: Path) -> None:
    toy = Toy()
    for limits, message in (
        ({"macs": 3}, "nearest feasible value is 8"),
        ({"mac": 30}, "got 'mac'; did you mean 'macs'"),
        ({"score_percent": float("nan")}, "must be a finite number, got nan"),
    ):
        with pytest.raises(InvalidInput, match=message):
            go(toy, limits=limits)
    with pytest.raises(InvalidInput, match="limits on params need the space's cost table"):
        search(SPACE, toy, budget=SMALL, limits={"params": 3}, progress=False)
    with pytest.raises(InvalidInput, match="did you mean 'nsga"):
        go(toy, "nsga")
    create_run(tmp_path / "run", "").close()
    with pytest.raises(InvalidInput, match="opened for reading only"):
        go(toy, run=open_run(tmp_path / "run", write=False))
    assert toy.asked == []


@pytest.mark.slow
def test_a_search_ends_when_every_feasible_subnet_was_seen() -> None:
    result = go(Toy(), budget=Budget(evaluations=1000), limits={"macs": 30})
    rows = SPACE.encode(list({SPACE.canonical(c) for c in SPACE.sample(np.random.default_rng(0), 5000)}))
    assert len(result.evaluations) == (COSTS.macs(rows) <= 30).sum()


def test_minutes_are_shared_between_controls_and_searcher(tmp_path: Path) -> None:
    toy = Toy()
    with create_run(tmp_path / "run", "") as run:
        go(toy, budget=Budget(minutes=0.5), run=run, clock_s=lambda: toy.now)
        who = Counter(line["searcher"] for line in run.journal.lines() if line["kind"] == "result")
        assert who == {"uniform": 8, "random": 6, "nsga2": 16}  # 30 evaluations of a second each
        again = Toy()
        go(again, budget=Budget(minutes=0.5), run=run, clock_s=lambda: again.now)
        assert again.asked == []
        go(again, budget=Budget(minutes=0.6), run=run, clock_s=lambda: again.now)
        assert len(again.asked) == 6


def test_the_bar_compares_the_front_with_the_controls(capfd: pytest.CaptureFixture[str]) -> None:
    search(SPACE, Toy(), "random", budget=SMALL, costs=COSTS)
    last = capfd.readouterr().err.splitlines()[-1]
    assert "search random" in last
    assert "20/20" in last
    assert "x controls" in last


def test_the_result_so_far_is_kept_at_once_then_every_few_seconds_and_on_ctrl_c() -> None:
    def impatient(n: int, config: SubnetConfig) -> bool:
        if n == 13:
            raise KeyboardInterrupt
        return False

    toy, kept = Toy(fails=impatient), list[SearchResult]()
    with pytest.raises(KeyboardInterrupt):
        go(toy, clock_s=lambda: toy.now, keep=kept.append)
    assert [len(result.evaluations) for result in kept] == [1, 6, 11, 12]
    for result in kept:
        assert result.front == ParetoFront.of(Toy.objectives, result.evaluations)


@pytest.mark.parametrize(
    ("budget", "ended"),
    [
        (Budget(evaluations=20), "evaluations"),
        (Budget(evaluations=20, minutes=0.1), "minutes"),
        (Budget(evaluations=10**6), "exhausted"),
    ],
)
def test_a_result_says_what_ended_the_search(budget: Budget, ended: str) -> None:
    toy = Toy()
    limits = {"macs": 16} if ended == "exhausted" else {}
    result = go(toy, budget=budget, limits=limits, searcher="random", clock_s=lambda: toy.now)
    assert result.ended == ended
