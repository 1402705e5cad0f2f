"""Processes killed, stopped and interrupted, at every kind of moment, then started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.faults.child import Child, Ended, command
from benchmarks.faults.road import COMMANDS, Road, Row, same_page
from subnet_search.record.atomic import TEMPORARY

PER_COMMAND = 16
LATER_S = 0.15  # between the beginning of a stage and the kill by time


def kill_at_writes(road: Road) -> list[Row]:
    """kill -9 just before a change to the folder; the same command again."""
    return _at_moments(road, "kill -9 at a write", signal.SIGKILL, {-signal.SIGKILL}, PER_COMMAND)


def sigterm(road: Road) -> list[Row]:
    """SIGTERM just before a change to the folder."""
    return _at_moments(road, "SIGTERM", signal.SIGTERM, {143}, 6)


def ctrl_c(road: Road) -> list[Row]:
    """SIGINT just before a change to the folder."""
    return _at_moments(road, "Ctrl-C", signal.SIGINT, {130}, 6)


def _at_moments(road: Road, fault: str, number: int, wanted: set[int], most: int) -> list[Row]:
    rows: dict[str, Row] = {}
    lost_s: dict[str, list[float]] = {}
    again: dict[str, int] = {}
    out = road.disk.folder / "kill"

    def act(since: int) -> None:
        if since == 0:
            os.kill(os.getpid(), number)

    for name in (*COMMANDS, "report"):
        count = len(road.unbroken[name].moments)
        for at in road.picked(list(range(count)), most):
            stage = road.stage_of(name, at)
            row = rows.setdefault(stage, Row(fault, stage))
            folder, arguments = road.before(name, out), road.arguments(name, out)
            stopped = command(arguments, folder, at=at, act=act)
            lost_s.setdefault(stage, []).append(_since_last_kept_s(folder, stopped))
            again[stage] = max(again.get(stage, 0), _unanswered(folder))
            ended = command(arguments, folder)
            row.add(stopped, ended, wanted=wanted, what=f"moment {at}")
            page = [] if name != "report" or same_page(folder, road.after(name)) else ["report.html"]
            row.compare(road.differences(folder, name) + page, f"moment {at}")
    for stage, row in rows.items():
        row.lost = f"{max(lost_s[stage]):.1f} s of work, {again[stage]} evaluations"
    return list(rows.values())


def kill_at_times(road: Road) -> list[Row]:
    """kill -9 in the middle of a stage's work, of a process started as a user starts it; then `resume`."""
    rows = []
    for name in COMMANDS:
        for stage in road.stages(name):
            if stage in ("prepare", "test"):
                continue
            out = road.disk.folder / "kill"
            folder = road.before(name, out)
            row = Row("kill -9 at a time", stage)
            command_line = [sys.executable, "-m", "subnet_search", *road.arguments(name, out)]
            with subprocess.Popen(
                command_line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as process:
                _wait_for_stage(folder, stage, process)
                time.sleep(LATER_S if stage != "rank" else 0)
                process.kill()
            stopped = Ended(process.returncode, "", time.time(), ())
            row.lost = (
                f"{_since_last_kept_s(folder, stopped):.1f} s of work, {_unanswered(folder)} evaluations"
            )
            ended = command(["resume", str(folder)], folder)
            row.add(stopped, ended, wanted={-signal.SIGKILL}, what=stage)
            row.compare(road.differences(folder, "report"), stage)
            rows.append(row)
    return rows


def _wait_for_stage(folder: Path, stage: str, process: subprocess.Popen[bytes]) -> None:
    events, begun = folder / "events.jsonl", f'"begin","stage":"{stage}"'.encode()
    while process.poll() is None and not (events.exists() and begun in events.read_bytes()):
        time.sleep(0.001)


def stopped_while_another_works(road: Road) -> list[Row]:
    """A second process on a run that another one is writing, halted in the middle so that it surely is."""
    rows = []
    for name in ("train", "search", "export"):
        row = Row("two processes on one run", name)
        out = road.disk.folder / "two"
        folder = road.before(name, out)

        def halt(since: int) -> None:
            if since == 0:
                os.kill(os.getpid(), signal.SIGSTOP)

        first = Child(road.arguments(name, out), folder, at=len(road.unbroken[name].moments) // 2, act=halt)
        os.waitpid(first.pid, os.WUNTRACED)
        for second in (road.arguments(name, out), ["resume", str(folder)]):
            refused = command(second, folder)
            row.add(refused, wanted={2}, what=second[0])
            named = f"process {first.pid} on host" in refused.told
            row.check(named, second[0], "the message does not name the first process")
        row.add(command(["report", str(folder)], folder), wanted={0}, what="report, which only reads")
        os.kill(first.pid, signal.SIGCONT)
        row.add(first.wait(), wanted={0}, what="the first process")
        row.compare(road.differences(folder, name), "the first process")
        row.lost = "nothing"
        rows.append(row)
    return rows


def _since_last_kept_s(folder: Path, stopped: Ended) -> float:
    """Seconds from the last change that outlives the process to its end: the work that is done again."""
    kept = [
        path.stat().st_mtime
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith((TEMPORARY, ".lock"))
    ]
    begun_s = [moment.time_s for moment in stopped.moments[:1]]
    return max(0.0, stopped.time_s - max([*begun_s, *kept], default=stopped.time_s))


def _unanswered(folder: Path) -> int:
    """Evaluations that were begun and have no answer on record."""
    journal = folder / "evaluations.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True) if journal.exists() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    return sum(b'"kind":"ask"' in line for line in whole) - sum(b'"kind":"ask"' not in line for line in whole)
