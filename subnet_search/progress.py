"""Progress on stderr: a bar in a terminal, at most one line per ten seconds elsewhere, silence on request."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")
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


def progress(
    items: Iterable[T] | int | None, what: str, unit: str = "it", *, enabled: bool = True, done: int = 0
) -> tqdm[T]:
    """A tqdm bar with rate and remaining time; `.update()`, `.set_postfix_str()` and `.close()` are tqdm's.

    Args:
        items: what to iterate over, or the total number of steps for a bar that is moved by `.update()`;
            None when the total is not known.
        what: the words in front.
        unit: what is counted.
        enabled: False is silent, and so is the environment variable SUBNET_SEARCH_PROGRESS=0.
        done: steps finished earlier, by a run that is being resumed.
    """
    counted = items is None or isinstance(items, int)
    known: dict[str, Any] = {"total": items} if counted else {"iterable": items}
    style: dict[str, Any] = {"file": sys.stderr, "mininterval": 0.2, "dynamic_ncols": True}
    if not sys.stderr.isatty():
        style = {"file": _Lines(sys.stderr), "mininterval": LINE_EVERY_S, "ncols": 100, "ascii": True}
    silent = not enabled or os.environ.get(OFF_SWITCH) == "0"
    return tqdm(**known, **style, desc=what, unit=unit, initial=done, disable=silent, miniters=1, leave=True)
