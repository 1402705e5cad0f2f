"""Work in a process that may be ended in the middle of it."""

from __future__ import annotations

import os
from collections.abc import Callable


def in_a_child(work: Callable[[], None]) -> int:
    """Runs `work` in a forked process, which cannot clean up when it exits inside; returns the exit status."""
    if (pid := os.fork()) == 0:
        try:
            work()
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(99)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
