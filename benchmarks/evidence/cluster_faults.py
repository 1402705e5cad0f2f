"""Faults of workers, nodes and drivers: what was lost, what was paid twice, and whether the record is right.

Each fault is tried some times on a small Ray cluster on this machine; what is finished is kept.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.cluster_toys import COSTS, SPACE
from benchmarks.evidence.road import RESULTS
from subnet_search.measure import describe_device
from subnet_search.record import Run, create_run, open_run
from subnet_search.searchers import Answer, Budget, EvaluatorFactory, Pool, SearchResult, Workers, search
from subnet_search.workers import RayPool, pool

COMMAND = "python -m benchmarks.evidence.cluster_faults"
RUNS = Path("runs/cluster_faults")
NODE: dict[str, Any] = {"num_cpus": 2, "num_gpus": 0, "object_store_memory": 80 * 2**20}
HAPPENS_AT = 10  # answers
OFF_S = 15.0  # that the storage does not answer
EVALUATIONS, WORKERS, TRIES, PATIENCE_S = 30, 4, 3, 120.0
HEAD = f"""# Faults of a cluster

A search of {EVALUATIONS} evaluations (random sub-nets and uniform widths, whose values do not depend on the order) by
{WORKERS} workers on a Ray cluster of two nodes on one machine, broken on purpose. Evaluated again: evaluations that
had come to their end, whose answer nobody took, and were made once more. Paid twice: of those, the ones that the
journal had already. Wrong: sub-nets whose values are not those of a search in one process; those that the fault itself
makes fail are counted as failed instead. The largest sub-net is the one in trouble.

Made by `{COMMAND}` (resumable).
"""


@dataclass(frozen=True)
class Row:
    """What one try found."""

    failed: int
    again: int
    paid_twice: int
    missing: int
    wrong: int
    seconds: float
    told: str


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("names", nargs="*", help=f"default: {', '.join(FAULTS)}")
    RUNS.mkdir(parents=True, exist_ok=True)
    for name in parser.parse_args().names or FAULTS:
        path = RUNS / f"{name.replace(' ', '-')}.json"
        if not path.exists():
            rows = [asdict(tried(FAULTS[name])) for _ in range(TRIES)]
            beside = path.with_suffix(".part")
            beside.write_text(json.dumps(rows, indent=1))
            beside.replace(path)
        write_page()
    print((RESULTS / "cluster_faults.md").read_text("utf-8"))


def tried(fault: Callable[[Any, Path], str | None]) -> Row:
    """One try on a fresh cluster and a fresh run."""
    import ray
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        try:
            cluster.add_node(**NODE)
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
            start_s = time.monotonic()
            told = fault(cluster, folder)
            seconds = time.monotonic() - start_s
        finally:
            ray.shutdown()
            cluster.shutdown()  # type: ignore[no-untyped-call]
        return judged(folder, seconds, told or "")


def judged(folder: Path, seconds: float, told: str) -> Row:
    """What journal and evaluators wrote down, beside a search in one process."""
    with tempfile.TemporaryDirectory() as scratch, create_run(Path(scratch, "run"), "") as run:
        go(factory(Path(scratch), wait_s=0.0), run)
        expected = values_of(run)
    with open_run(folder / "run", write=False) as run:
        found, lines = values_of(run), run.journal.lines()
    failed = {line["key"]: line["reason"] for line in lines if line["kind"] == "failed"}
    calls = Counter((folder / "calls").read_text().split())
    answers = Counter(line["key"] for line in lines if line["kind"] != "ask")
    return Row(
        failed=len(failed),
        again=sum(calls.values()) - len(calls),
        paid_twice=sum(answers.values()) - len(answers),
        missing=len(expected.keys() - found.keys() - failed.keys()),
        wrong=sum(found[key] != expected.get(key) for key in found),
        seconds=seconds,
        told="; ".join(sorted({*failed.values(), told} - {""})),
    )


def values_of(run: Run) -> dict[str, Any]:
    return {line["key"]: line["values"] for line in run.journal.lines() if line["kind"] == "result"}


def factory(folder: Path, trouble: str = "", wait_s: float = 0.2) -> EvaluatorFactory:
    options = {"folder": str(folder), "trouble": trouble, "wait_s": wait_s}
    return EvaluatorFactory("benchmarks.cluster_toys:make_troubled", options)


def go(evaluator: EvaluatorFactory | Pool, run: Run, **more: Any) -> SearchResult:
    budget = Budget(evaluations=EVALUATIONS)
    return search(SPACE, evaluator, "random", budget=budget, costs=COSTS, run=run, progress=False, **more)


def in_trouble(trouble: str, timeout_s: float | None = None) -> Callable[[Any, Path], None]:
    """A sub-net that harms its worker."""

    def fault(cluster: Any, folder: Path) -> None:
        pool.GRACE_S = 1.0
        with create_run(folder / "run", "") as run:
            go(factory(folder, trouble), run, workers=WORKERS, timeout_s=timeout_s)

    return fault


class Disturbed(RayPool):
    """Lets something happen before each answer; counts the workers that died."""

    happens: Callable[[int], None] | None = None
    answered = died = 0

    def next(self) -> Answer:
        self.answered += 1
        if self.happens:
            self.happens(self.answered)
        return super().next()

    def _lost(self, slot: Any, error: Exception) -> None:
        self.died += 1
        super()._lost(slot, error)


def disturbed(happens: Callable[[Any, Disturbed, int], None]) -> Callable[[Any, Path], None]:
    """A search in whose midst something happens to the cluster."""

    def fault(cluster: Any, folder: Path) -> None:
        with closing(Disturbed(factory(folder), Workers(WORKERS))) as workers:
            until(lambda: workers.look_once() == WORKERS)
            workers.happens = lambda answer: happens(cluster, workers, answer)
            with create_run(folder / "run", "") as run:
                go(workers, run)
            if not workers.died:
                raise RuntimeError("no worker noticed what happened")

    return fault


def kill_two(cluster: Any, workers: Disturbed, answer: int) -> None:
    for slot in workers._slots[:2] if answer == HAPPENS_AT else ():
        workers._ray.kill(slot.actor)


def lose_a_node(cluster: Any, workers: Disturbed, answer: int) -> None:
    if answer == HAPPENS_AT:
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)


def lose_a_node_and_get_another(cluster: Any, workers: Disturbed, answer: int) -> None:
    lose_a_node(cluster, workers, answer)
    if answer == HAPPENS_AT + 6:
        cluster.add_node(**NODE)
        until(lambda: workers.look_once() == WORKERS)


def driver_dies(cluster: Any, folder: Path) -> None:
    """kill -9 at two moments; the third driver ends the search."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.evidence.cluster_faults_driver",
        str(folder),
        cluster.address,
    ]
    journal = folder / "run" / "evaluations.jsonl"
    for least in (6, 18):
        process = subprocess.Popen(command)
        until(functools.partial(has_results, journal, least))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True)


def storage_stops(cluster: Any, folder: Path) -> str:
    """The server of a shared study is stopped in the midst of a search, and started again later."""
    from subnet_search.searchers.study_claims import StudyClaims
    from tests.searchers.postgres import Server

    def stop_for_a_while(cluster: Any, workers: Disturbed, answer: int) -> None:
        if answer == HAPPENS_AT:
            server.stop()
            threading.Timer(OFF_S, server.start).start()

    def mirrored() -> int:
        other = StudyClaims(server.url, driver="other", renews=False)
        other.open(SPACE, workers.objectives, workers.context, ())
        return len(other.news())

    with (
        Server(folder / "server") as server,
        closing(Disturbed(factory(folder), Workers(WORKERS))) as workers,
    ):
        until(lambda: workers.look_once() == WORKERS)
        workers.happens = functools.partial(stop_for_a_while, cluster, workers)
        with create_run(folder / "run", "") as run:
            go(workers, run, claims=StudyClaims(server.url, driver="this"))
        return f"{mirrored()} of {EVALUATIONS} in the storage, which was off for {OFF_S:g} s"


def has_results(journal: Path, least: int) -> bool:
    return journal.exists() and journal.read_bytes().count(b'"kind":"result"') >= least


def until(holds: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > end_s:
            raise RuntimeError(f"it did not come to pass within {PATIENCE_S:g} s")


FAULTS: dict[str, Callable[[Any, Path], str | None]] = {
    "worker killed in an evaluation": in_trouble("killed once"),
    "sub-net that kills every worker": in_trouble("killed always"),
    "sub-net without enough memory": in_trouble("no memory"),
    "evaluation that hangs": in_trouble("hangs", 2.0),
    "evaluation that hangs and hears no signal": in_trouble("hangs deaf", 2.0),
    "two of four workers killed": disturbed(kill_two),
    "one of two nodes removed": disturbed(lose_a_node),
    "one node removed and another added": disturbed(lose_a_node_and_get_another),
    "driver killed with kill -9 twice and started again": driver_dies,
    "storage server (PostgreSQL) stopped and started again": storage_stops,
}


def write_page() -> None:
    """The page and its numbers, of all faults that are finished."""
    paths = {name: RUNS / f"{name.replace(' ', '-')}.json" for name in FAULTS}
    done = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    missing = [name for name in FAULTS if name not in done]
    lines = [HEAD]
    if missing:
        lines.append(f"Not finished yet: {', '.join(missing)}.\n")
    lines.append("| fault | tries | failed | evaluated again | paid twice | missing | wrong | what is told |")
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, rows in done.items():
        counts = (
            span([row[what] for row in rows])
            for what in ("failed", "again", "paid_twice", "missing", "wrong")
        )
        told = "; ".join(sorted({row["told"] for row in rows if row["told"]}))[:160]
        lines.append(f"| {name} | {len(rows)} | {' | '.join(counts)} | {told} |")
    device = describe_device()
    lines.append(
        f"\nOne number: in every try; two: the least and the most. {date.today().isoformat()}, {json.dumps(device)}."
    )
    page = {"command": COMMAND, "machine": device, "missing": missing, "faults": done}
    for name, text in (("md", "\n".join(lines) + "\n"), ("json", json.dumps(page, indent=1))):
        beside = RESULTS / f".cluster_faults.{name}.part"
        beside.write_text(text, "utf-8")
        beside.replace(RESULTS / f"cluster_faults.{name}")


def span(values: list[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


if __name__ == "__main__":
    main()
