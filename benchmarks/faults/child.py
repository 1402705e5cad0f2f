"""A command line in a process of its own, where something happens at a chosen moment.

The process is forked from this one, which has imported everything already, so that a try costs its work alone. A
moment is a change to the files of one folder, seen by Python's audit hook: an opening for writing, a renaming, a
deletion. The same command has the same moments each time, so each can be picked by its number.
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subnet_search import cli
from subnet_search.record.atomic import TEMPORARY

LONGEST_S = 300.0
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.truncate"}

Act = Callable[[int], object]  # takes how many moments ago it was first called


@dataclass(frozen=True)
class Moment:
    """Just before one change to the folder: when (seconds since 1970), what kind, of which file in it."""

    time_s: float
    what: str
    name: str


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (negative: the signal that killed it), what it said, its moments.

    `modules` are all that it had imported, if it could still say so.
    """

    code: int
    told: str
    time_s: float
    moments: tuple[Moment, ...]
    modules: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """The lines that say why it ended, without the progress before them."""
        lines = self.told.splitlines()
        first = [n for n, line in enumerate(lines) if line.startswith(("refused", "failed", "stopped"))]
        return "\n".join(lines[first[0] :]) if first else ""


class Child:
    """A forked process that runs `subnet-search ARGUMENTS`.

    Args:
        arguments: of the command line.
        folder: whose changes are its moments.
        at: the number of the moment at which `act` is called in the child, and at each later one; None: never.
        act: may end the process, or raise.
        prepare: called in the child before the command.
    """

    def __init__(
        self,
        arguments: list[str],
        folder: Path,
        *,
        at: int | None = None,
        act: Act | None = None,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        self._said, self._log, self._modules = (os.memfd_create(name) for name in ("said", "log", "modules"))
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.dup2(self._said, 1)
                os.dup2(self._said, 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                if prepare:
                    prepare()
                sys.addaudithook(_Watch(folder, self._log, at, act))
                code = cli.run_command(arguments)
            except BaseException as error:  # what a command line must never let through
                code = 70
                print("Traceback", repr(error))
            sys.stdout.flush()
            sys.stderr.flush()
            os.write(self._modules, "\n".join(list(sys.modules)).encode())
            os._exit(code)

    def wait(self) -> Ended:
        """Waits for its end; one that takes five minutes is killed, which shows as code -9."""
        deadline_s = time.monotonic() + LONGEST_S
        while (ended := os.waitpid(self.pid, os.WNOHANG)) == (0, 0):
            if time.monotonic() > deadline_s:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.002)
        log = [line.split("\t") for line in _content(self._log).splitlines()]
        moments = tuple(Moment(float(time_s), what, name) for time_s, what, name in log)
        code, told, modules = (
            os.waitstatus_to_exitcode(ended[1]),
            _content(self._said),
            _content(self._modules),
        )
        return Ended(code, told, time.time(), moments, tuple(modules.split()))


def command(arguments: list[str], folder: Path, **more: Any) -> Ended:
    """Runs a `Child` to its end."""
    return Child(arguments, folder, **more).wait()


def import_as(ended: Ended) -> None:
    """Imports what a command has imported, so that later ones need not: it is most of a short command's time."""
    for name in ended.modules:
        if name not in sys.modules:
            with suppress(Exception):  # parts that their package puts there by other means
                importlib.import_module(name)


def _content(descriptor: int) -> str:
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0)
        return file.read().decode("utf-8", "replace")


class _Watch:
    """An audit hook that counts the changes to `folder` and acts from one of them on."""

    def __init__(self, folder: Path, log: int, at: int | None, act: Act | None) -> None:
        self._folder, self._log, self._at, self._act = os.path.abspath(folder) + os.sep, log, at, act
        self._count, self._acting = 0, False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES or self._acting or (event == "open" and not arguments[2] & WRITING):
            return
        path = arguments[1 if event == "os.rename" else 0]
        if not isinstance(path, str | os.PathLike) or not os.path.abspath(path).startswith(self._folder):
            return
        self._acting = True  # what happens in here is no moment
        try:
            name = os.path.abspath(path).removeprefix(self._folder)
            name = re.sub(rf"{re.escape(TEMPORARY)}\d+-", "", name)
            os.write(self._log, f"{time.time()}\t{event.removeprefix('os.')}\t{name}\n".encode())
            self._count += 1
            if self._at is not None and self._act is not None and self._count > self._at:
                self._act(self._count - self._at - 1)
        finally:
            self._acting = False
