"""Progress on stderr: a bar in a terminal, at most one line per ten seconds elsewhere, silence on request."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")
_silent = ContextVar("_silent", default=False)
OFF_SWITCH = "SUBNET_SEARCH_PROGRESS"  # environment variable; "0" turns every bar off
LINE_EVERY_S = 10.0


class _Lines:
    """Turns a bar's carriage returns into lines, for logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            self._stream.write(line + "\n")

    def flush(self) -> None:
        self._stream.flush()


def _size(stream: TextIO) -> dict[str, Any]:
    """What tqdm is told about the terminal: some report no rows or columns, where tqdm would show nothing."""
    try:
        seen = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):  # no terminal, or no file at all
        return {"dynamic_ncols": True}
    return {"dynamic_ncols": True} if seen.lines > 2 and seen.columns > 2 else {"ncols": 80, "nrows": 24}


def progress(
    items: Iterable[T] | int | None,
    what: str,
    unit: str = "it",
    *,
    enabled: bool = True,
    done: int = 0,
    delay_s: float = 0.0,
) -> tqdm[T]:
    """A tqdm bar with rate and remaining time; `.update()`, `.set_postfix_str()` and `.close()` are tqdm's.

    Args:
        items: what to iterate over, or the total number of steps for a bar that is moved by `.update()`;
            None when the total is not known.
        what: the words in front.
        unit: what is counted.
        enabled: False is silent, and so is the environment variable SUBNET_SEARCH_PROGRESS=0.
        done: steps finished earlier, by a run that is being resumed.
        delay_s: what is over sooner shows no bar.
    """
    counted = items is None or isinstance(items, int)
    known: dict[str, Any] = {"total": items} if counted else {"iterable": items}
    style: dict[str, Any] = {"file": sys.stderr, "mininterval": 0.2, "delay": delay_s, **_size(sys.stderr)}
    if not sys.stderr.isatty():
        lines = {"file": _Lines(sys.stderr), "mininterval": LINE_EVERY_S, "ncols": 100, "ascii": True}
        style = {"delay": delay_s, **lines}
    silent = not enabled or _silent.get() or os.environ.get(OFF_SWITCH) == "0"
    return tqdm(**known, **style, desc=what, unit=unit, initial=done, disable=silent, miniters=1, leave=True)


@contextmanager
def silenced() -> Iterator[None]:
    """No bar of this thread shows inside the scope."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)
