"""A small disk of its own that can be filled or made read-only: a tmpfs, or else errors in its place."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEBIBYTES = 24
PAGE = 4096


class Disk:
    """A place for run folders.

    Args:
        folder: where it is mounted, if this process may mount; otherwise a plain folder.

    Attributes:
        real: whether it is a file system of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._filler = folder / "filler"
        self.real = _system("mount", "-t", "tmpfs", "-o", f"size={MEBIBYTES}m", "tmpfs", str(folder))

    def close(self) -> None:
        """Gives the place back."""
        if self.real:
            _system("umount", str(self.folder))

    @property
    def words(self) -> str:
        """What it is, for the table."""
        return (
            f"tmpfs of {MEBIBYTES} MiB" if self.real else "errors in place of a disk: no right to mount here"
        )

    def fill(self, left: int) -> None:
        """Takes all room but `left` bytes; where there is no disk of its own, raises instead."""
        if not self.real:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        state = os.statvfs(self.folder)
        size = state.f_bavail * state.f_frsize - left
        if size > 0:
            descriptor = os.open(self._filler, os.O_CREAT | os.O_RDWR)
            try:
                os.posix_fallocate(descriptor, 0, os.fstat(descriptor).st_size + size)
            finally:
                os.close(descriptor)

    def free(self) -> None:
        """Makes room again."""
        self._filler.unlink(missing_ok=True)

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Nothing on it can be changed inside the scope."""
        if self.real:
            _system("mount", "-o", "remount,ro", str(self.folder))
        try:
            yield
        finally:
            if self.real:
                _system("mount", "-o", "remount,rw", str(self.folder))

    def refuse(self) -> None:
        """What a write raises while it is `read_only` without a disk of its own."""
        if not self.real:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def _system(*words: str) -> bool:
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except OSError:
        return False
