"""One writing process per run folder."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from search_spaces import InvalidInput

from .atomic import telling_what_failed


def lock_folder(folder: Path) -> FileLock:
    """Takes the folder's lock or refuses at once; the system frees it when the process ends, however it ends.

    Raises:
        InvalidInput: when another process holds it; the message names that process and its host.
    """
    holder = folder / ".lock-holder"
    lock = FileLock(folder / ".lock", timeout=0, thread_local=False)
    with telling_what_failed(folder):
        try:
            lock.acquire()
        except Timeout:
            raise InvalidInput(
                f"the run folder {folder} is in use by {_described(holder)}; wait for its end, or stop it"
            ) from None
        holder.write_text(f"{os.getpid()}@{socket.gethostname()}")
    return lock


def _described(holder: Path) -> str:
    try:
        pid, _, host = holder.read_text("utf-8", "replace").partition("@")
    except OSError:
        return "another process"
    return f"process {pid} on host {host}" if host else "another process"
