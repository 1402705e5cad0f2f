"""Evaluations by real Ray workers: what they give, and what is lost when they die, hang, come and go."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search_spaces import InvalidInput, SubnetSearchError
from subnet_search.record import Run, create_run, open_run
from subnet_search.searchers import Budget, EvaluatorFactory, Listed, SearchResult, Workers, search
from subnet_search.workers import RayPool, pool, versions
from subnet_search.workers.actor import EvaluatingActor
from tests.workers.conftest import NODE
from tests.workers.places import COSTS, DEAF, DYING, HANGING, LARGE, POISON, SPACE, worth

pytestmark = pytest.mark.slow


def made_by(name: str, **options: Any) -> EvaluatorFactory:
    return EvaluatorFactory(f"tests.workers.places:{name}", options)


def go(factory: EvaluatorFactory, run: Run | None = None, evaluations: int = 16, **more: Any) -> SearchResult:
    more = {"workers": 2, **more}
    budget = Budget(evaluations=evaluations)
    return search(SPACE, factory, "random", budget=budget, costs=COSTS, run=run, progress=False, **more)


def calls(folder: Path) -> list[tuple[str, int]]:
    """Key and process of each evaluation that came to its end."""
    lines = (folder / "calls").read_text().splitlines()
    return [(key, int(pid)) for key, pid in map(str.split, lines)]


def values(result: SearchResult) -> dict[str, tuple[float, ...]]:
    return {e.config.key: e.values for e in result.evaluations}


def alone() -> SearchResult:
    """The same search in this process; a random search asks the same whatever the answers are."""
    return go(made_by("plain"), workers=1)


def test_workers_find_what_one_process_finds_and_each_makes_its_evaluator_once(
    ray_cluster: Any, tmp_path: Path
) -> None:
    with create_run(tmp_path / "run", "") as run:
        three = RayPool(made_by("plain", folder=str(tmp_path), wait_s=0.05), Workers(3))
        until(lambda: three.look_once() == 3)
        budget = Budget(evaluations=16)
        result = search(SPACE, three, "random", budget=budget, costs=COSTS, run=run, progress=False)
        answers = [line for line in run.journal.lines() if line["kind"] == "result"]
    assert values(result) == values(alone())
    assert len(answers) == 16
    assert {line["context"] for line in answers} == {"toy1"}
    processes = Counter(pid for _, pid in calls(tmp_path))
    assert len(processes) == 3
    assert os.getpid() not in processes


def test_subnets_that_kill_workers_hang_or_need_too_much_memory_cost_no_other_evaluation(
    ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "GRACE_S", 0.5)
    troubles = (DYING, POISON, LARGE, HANGING, DEAF)
    with create_run(tmp_path / "run", "") as run:
        factory = made_by("troubled", folder=str(tmp_path))
        result = search(
            SPACE, factory, Listed(troubles), name="mine", budget=Budget(evaluations=24), costs=COSTS,
            workers=2, run=run, timeout_s=0.5, progress=False,
        )  # fmt: skip
        again = search(
            SPACE, made_by("plain"), Listed(troubles), name="mine", budget=Budget(evaluations=24), costs=COSTS,
            run=run, progress=False,
        )  # fmt: skip
    failed = {e.config: e.reason for e in result.evaluations if not e.ok}
    assert set(failed) == {POISON, LARGE, HANGING, DEAF}
    assert "the worker died 3 times over it: ActorDiedError" in failed[POISON]
    assert failed[LARGE] == "MemoryError: cannot allocate 3 TiB"
    assert failed[HANGING] == failed[DEAF] == "no answer within 0.5 s"
    assert (tmp_path / "died").exists()
    for evaluation in result.evaluations:
        assert not evaluation.ok or evaluation.values == worth(evaluation.config).values
    seen = Counter(key for key, _ in calls(tmp_path))
    assert seen.pop("poisoned") == 3  # by three processes
    assert len({pid for key, pid in calls(tmp_path) if key == "poisoned"}) == 3
    assert set(seen.values()) == {1}  # nothing else was evaluated twice
    assert again == result


def test_a_node_may_go_and_another_one_come(ray_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    node = ray_cluster.add_node(**NODE)
    died: list[Exception] = []

    class Moving(RayPool):
        """Takes a node away, with two of the six workers, and brings another one once they are missed."""

        def next(self) -> Any:
            if not died:
                ray_cluster.remove_node(node, allow_graceful=False)
                until(lambda: self.look_once() == 4)
                ray_cluster.add_node(**NODE)
            return super().next()

        def _lost(self, slot: Any, error: Exception) -> None:
            died.append(error)
            super()._lost(slot, error)

    moving = Moving(made_by("plain", wait_s=1.0), Workers(6))
    until(lambda: moving.look_once() == 6)
    budget = Budget(evaluations=12)
    result = search(SPACE, moving, "random", budget=budget, costs=COSTS, progress=False)
    assert len(died) == 2
    assert values(result) == values(go(made_by("plain"), evaluations=12, workers=1))


def test_a_worker_that_died_while_it_had_nothing_to_do_does_not_count_against_a_subnet(
    ray_cluster: Any,
) -> None:
    killed = RayPool(made_by("plain"), Workers(2))
    until(lambda: killed.look_once() == 2)
    for slot in killed._slots:
        killed._ray.kill(slot.actor)
        slot.seen_s -= 10
    killed.submit(SPACE.largest(), ())
    assert killed.next().evaluation == worth(SPACE.largest())
    killed.close()


def until(holds: Callable[[], bool], most_s: float = 60.0) -> None:
    end_s = time.monotonic() + most_s
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_without_any_worker_a_search_ends_in_words_and_can_go_on(ray_cluster: Any, tmp_path: Path) -> None:
    with create_run(tmp_path / "run", "") as run:
        gone = RayPool(made_by("plain"), Workers(2, patience_s=0.2))
        for slot in gone._slots:
            gone._end(slot)
        gone._actor = gone._ray.remote(EvaluatingActor).options(num_cpus=1000)  # no node will ever have them
        budget = Budget(evaluations=16)
        with pytest.raises(SubnetSearchError, match=r"no worker has been alive for 0\.2 s; once .* has room"):
            search(SPACE, gone, "random", budget=budget, costs=COSTS, run=run, progress=False)
        assert values(go(made_by("plain"), run)) == values(alone())


def test_what_workers_cannot_do_is_refused_before_anything_is_evaluated(
    ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for factory, message in (
        (made_by("plane"), r"the worker \d+ on \S+ cannot evaluate: .* has no callable 'plane'"),
        (
            made_by("timed"),
            "2 workers for 1 machines: latency is measured, and workers on one machine slow.*workers=1",
        ),
    ):
        with create_run(tmp_path / factory.name.split(":")[1], "") as run:
            with pytest.raises(InvalidInput, match=message):
                go(factory, run, evaluations=100)
            assert not [line for line in run.journal.lines() if line["kind"] == "result"]
    with pytest.raises(
        InvalidInput, match=r"has \d+ CPUs and 0 GPUs, and each worker needs .* 1 GPUs; ask for"
    ):
        go(made_by("plain"), workers=Workers(2, gpus_each=1))
    others = {**versions.own_versions(), "torch": "1.0", "subnet-search": "9.9"}
    monkeypatch.setattr(pool, "own_versions", lambda: others)
    with pytest.raises(
        InvalidInput,
        match=r"it has subnet-search .* instead of 9\.9, torch .* instead of 1\.0; install the same",
    ):
        go(made_by("plain"))


def test_a_worker_has_one_thread(ray_cluster: Any) -> None:
    with pytest.raises(SubnetSearchError, match="RuntimeError: 1 threads"):
        go(made_by("threads"))


def test_ctrl_c_keeps_what_is_done_and_leaves_no_worker(ray_cluster: Any, tmp_path: Path) -> None:
    class Interrupted(RayPool):
        given = 0

        def next(self) -> Any:
            self.given += 1
            if self.given == 6:
                os.kill(os.getpid(), signal.SIGINT)
            return super().next()

    with create_run(tmp_path / "run", "") as run:
        stopped = Interrupted(made_by("plain", folder=str(tmp_path), wait_s=0.02), Workers(2))
        budget = Budget(evaluations=16)
        with pytest.raises(KeyboardInterrupt):
            search(SPACE, stopped, "random", budget=budget, costs=COSTS, run=run, progress=False)
        lines = Counter(line["kind"] for line in run.journal.lines())
        assert (lines["result"], lines["ask"] - lines["result"]) == (5, 2)
        assert values(go(made_by("plain"), run)) == values(alone())
    processes = {pid for _, pid in calls(tmp_path)}
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes))


DRIVER = """
import sys
from pathlib import Path
from subnet_search.record import create_run, open_run
from subnet_search.searchers import Workers
from tests.workers.test_pool import go, made_by
folder = Path(sys.argv[1])
with (open_run(folder / "run") if (folder / "run").exists() else create_run(folder / "run", "")) as run:
    go(made_by("plain", folder=sys.argv[1], wait_s=0.1), run, 24, workers=Workers(2, sys.argv[2]))
"""


def test_a_driver_that_is_killed_outright_and_started_again_loses_nothing_and_pays_for_nothing_twice(
    ray_cluster: Any, tmp_path: Path
) -> None:
    import subprocess
    import sys

    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", DRIVER, str(tmp_path), ray_cluster.address]
    journal = tmp_path / "run" / "evaluations.jsonl"
    process = subprocess.Popen(command, cwd=root)
    until(lambda: journal.exists() and journal.read_bytes().count(b'"kind":"result"') >= 9)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert subprocess.run(command, cwd=root, check=False).returncode == 0
    with open_run(tmp_path / "run", write=False) as run:
        lines = run.journal.lines()
    answered = Counter(line["key"] for line in lines if line["kind"] == "result")
    assert set(answered.values()) == {1}
    assert Counter(line["key"] for line in lines if line["kind"] == "ask") == answered
    found = {line["key"]: tuple(line["values"].values()) for line in lines if line["kind"] == "result"}
    expected = go(made_by("plain"), evaluations=24, workers=1)
    assert found == values(expected) == {e.config.key: worth(e.config).values for e in expected.evaluations}
    evaluated = Counter(key for key, _ in calls(tmp_path))
    again = sum(evaluated.values()) - len(evaluated)
    assert again <= 2  # at most those that were under way at the kill
