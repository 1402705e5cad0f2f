"""Files that are there whole or not at all, whenever the process dies."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from search_spaces import SubnetSearchError

TEMPORARY = ".tmp-"  # prefix of files that never became real; whoever opens the folder next removes them


def temporary_beside(path: Path) -> Path:
    """A name in the same folder (so that a rename is atomic) with the same ending."""
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")


def flush_file(path: Path) -> None:
    """Waits until the content of `path` is on the disk."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Waits until the names in `folder` are on the disk, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(temporary: Path, path: Path) -> None:
    """Gives the finished, flushed file `temporary` its name `path` in one step."""
    os.replace(temporary, path)
    flush_folder(path.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Writes `data` to `path` so that a reader sees the old content or the new one, never a part."""
    temporary = temporary_beside(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        put_in_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sha256_of(path: Path) -> str:
    """SHA-256 of the file's content as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def telling_what_failed(path: Path) -> Iterator[None]:
    """Turns the system's refusal to write into a `SubnetSearchError` with the path and the way out."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # the latter when weights meet a full disk
        raise SubnetSearchError(
            f"cannot write {path}: {getattr(error, 'strerror', None) or error}. What was there before is unharmed; "
            "make room or give write permission there, then run the same command again"
        ) from error
