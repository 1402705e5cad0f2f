"""Clocks that go backwards, jump or stand still, and files whose times are wrong."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from benchmarks.faults.child import command
from benchmarks.faults.road import Road, Row

HOUR_S, YEAR_S = 3600.0, 365.25 * 86400.0
NOW_S = time.time()

CLOCKS: dict[str, Callable[[int], float]] = {
    "goes backwards": lambda calls: NOW_S - calls * HOUR_S,
    "jumps back ten years": lambda calls: NOW_S - (calls > 3) * 10 * YEAR_S,
    "jumps ahead a hundred years": lambda calls: NOW_S + (calls > 3) * 100 * YEAR_S,
    "jumps ahead 5,000 years": lambda calls: NOW_S + (calls > 3) * 5000 * YEAR_S,
    "stands still": lambda calls: NOW_S,
    "stands before 1970": lambda calls: -HOUR_S,
}


def set_clock(clock: Callable[[int], float]) -> None:
    """Replaces `time.time`, also where a module has imported it by itself; counts its calls."""
    calls, real = count(), time.time

    def odd() -> float:
        return clock(next(calls))

    for module in list(sys.modules.values()):
        for name in [name for name, value in list(vars(module).items()) if value is real]:
            setattr(module, name, odd)


def _with(clock: Callable[[int], float]) -> Callable[[], None]:
    return lambda: set_clock(clock)


def odd_clocks(road: Road) -> list[Row]:
    """A command with a clock that is wrong: as a whole, and killed in the middle, to go on with the right clock."""
    rows, out = [], road.disk.folder / "clock"
    for fault, clock in CLOCKS.items():
        row = Row(f"the clock {fault}", "train, search, export, report", lost="nothing")
        for name in road.picked(["train", "search", "export", "report"], 4):
            folder, arguments = road.before(name, out), road.arguments(name, out)
            ended = command(arguments, folder, prepare=_with(clock))
            row.add(ended, command(["report", str(folder)], folder), wanted={0}, what=name)
            row.compare(road.differences(folder, name), name)
            if name == "report":
                continue
            what, folder = f"{name} in two parts", road.before(name, out)
            middle = len(road.unbroken[name].moments) // 2
            killed = command(
                arguments,
                folder,
                at=middle,
                act=_die,
                prepare=_with(clock),
            )
            row.add(killed, command(arguments, folder), wanted={-signal.SIGKILL}, what=what)
            row.compare(road.differences(folder, name), what)
        rows.append(row)
    return rows


def _die(since: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def files_of_the_future(road: Road) -> list[Row]:
    """All files of the run were written in ten years, or in 1970, as after a move between machines."""
    rows, out = [], road.disk.folder / "times"
    for fault, time_s in (("in ten years", NOW_S + 10 * YEAR_S), ("in 1970", 0.0)):
        row = Row(f"file times {fault}", "every command", lost="nothing")
        for name in road.picked(["train", "search", "finetune", "export", "report"], 5):
            folder = road.before(name, out)
            _date(folder, time_s)
            row.add(command(road.arguments(name, out), folder), wanted={0}, what=name)
            row.compare(road.differences(folder, name), name)
        rows.append(row)
    return rows


def _date(folder: Path, time_s: float) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (time_s, time_s))
