"""The run folder: every file whole, checked and written by one process."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from filelock import FileLock

from search_spaces import InvalidInput

from .atomic import (
    TEMPORARY,
    flush_file,
    put_in_place,
    sha256_of,
    telling_what_failed,
    temporary_beside,
    write_whole,
)
from .journal import Journal, sealed, unsealed
from .lock import lock_folder

SETTINGS, CHECKSUMS, JOURNAL, EVENTS = "settings.toml", "checksums.json", "evaluations.jsonl", "events.jsonl"
GIVEN_AGAIN = (
    "give the recipe that it was begun with again (run RECIPE --out FOLDER --name NAME), which restores it"
)


def create_run(folder: str | Path, settings_toml: str) -> Run:
    """Makes a run folder that holds `settings.toml`, locked for this process.

    Raises:
        InvalidInput: when `folder` holds a run already, or anything else.
    """
    folder = Path(folder)
    check_free(folder)
    with telling_what_failed(folder):
        folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder)
    try:
        run.write(SETTINGS, settings_toml)
    except BaseException:
        run.close()
        raise
    return run


def check_free(folder: Path) -> None:
    """Raises `InvalidInput` unless a new run may be made at `folder`."""
    if no_folder := next((path for path in folder.parents if path.exists() and not path.is_dir()), None):
        raise InvalidInput(f"no run can be at {folder}: {no_folder} is a file; choose another folder")
    if (folder / SETTINGS).exists():
        raise InvalidInput(f"{folder} holds a run already; continue it with open_run, or choose another name")
    ours = {CHECKSUMS, EVENTS}  # left by a process that died before its first settings were written
    names = {item.name for item in folder.iterdir()} if folder.is_dir() else set()
    if (folder.exists() and not folder.is_dir()) or any(name[0] != "." for name in names - ours):
        raise InvalidInput(f"{folder} exists and is no run folder; choose another name, or move it away")


def restore_settings(folder: str | Path, settings_toml: str) -> None:
    """Writes `settings.toml` of a run again if it is damaged or lost and was this text, as its checksum tells.

    Raises:
        InvalidInput: when the table of checksums is corrupt, or when another process holds the run.
    """
    folder = Path(folder)
    path, wanted = folder / SETTINGS, settings_toml.encode()
    if not (folder / CHECKSUMS).is_file() or (path.is_file() and path.read_bytes() == wanted):
        return
    if hashlib.sha256(wanted).hexdigest() in _load_sums(folder).get(SETTINGS, ()):
        with Run(folder) as run:
            run.write(SETTINGS, wanted)


def open_run(folder: str | Path, *, write: bool = True) -> Run:
    """Opens an existing run folder; `write=False` takes no lock and changes nothing.

    Raises:
        InvalidInput: when there is no run, when its settings or journal are corrupt, or when another process
            holds it.
    """
    folder = Path(folder)
    if not (folder / SETTINGS).is_file():
        way_out = GIVEN_AGAIN if (folder / CHECKSUMS).is_file() else "look for the one that has"
        raise InvalidInput(f"{folder} is no run folder: it has no {SETTINGS}; {way_out}")
    run = Run(folder, write=write)
    try:
        run.verify(SETTINGS)
    except BaseException:
        run.close()
        raise
    return run


class Run:
    """An open run folder; made by `create_run` and `open_run`, a context manager that gives the lock back.

    A file is written beside its place, flushed and renamed. `checksums.json` maps each name to the sums that
    are accepted: the new one is added before the rename and the old one dropped after it, so that no crash
    makes a good file look corrupt. It lists a checksum of itself too.

    Attributes:
        folder: where it is.
        journal: the evaluations seen so far.
    """

    def __init__(self, folder: Path, *, write: bool = True) -> None:
        self.folder = folder
        self._lock: FileLock | None = lock_folder(folder) if write else None
        try:
            if write:
                _clear_up(folder)
            self._sums = _load_sums(folder)
            self.journal = Journal(folder / JOURNAL, write=write)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the lock back; reading goes on working."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def path(self, name: str) -> Path:
        """Where the file `name` lies or would lie; "/" separates folders. `verify` checks its content."""
        parts = PurePosixPath(name).parts
        if not parts or any(part.startswith(".") for part in parts) or "\\" in name or name.startswith("/"):
            raise InvalidInput(f"a file of a run needs a relative name without leading dots, got {name!r}")
        if name in (CHECKSUMS, JOURNAL, EVENTS):
            raise InvalidInput(f"{name} is kept by the run itself; choose another name")
        return self.folder.joinpath(*parts)

    def has(self, name: str) -> bool:
        """Whether `name` was written completely and is still there (its content is not looked at)."""
        return self.path(name).is_file() and name in self._current_sums()

    def names(self) -> list[str]:
        """The files that `has` finds, sorted."""
        return sorted(name for name in self._current_sums() if self.path(name).is_file())

    def verify(self, name: str) -> Path:
        """The path of `name`, after comparing the whole content with its checksum.

        Raises:
            InvalidInput: when the file is missing, truncated or changed.
        """
        path = self.path(name)
        self._check(name, lambda: sha256_of(path))
        return path

    def read(self, name: str) -> bytes:
        """The content of `name`, compared with its checksum; raises like `verify`."""
        path, data = self.path(name), b""

        def read_and_sum() -> str:
            nonlocal data
            data = path.read_bytes()
            return hashlib.sha256(data).hexdigest()

        self._check(name, read_and_sum)
        return data

    def read_json(self, name: str) -> Any:
        """The content of `name` as JSON; raises like `verify`."""
        return json.loads(self.read(name))

    def missing(self) -> list[str]:
        """The files that were written completely and are gone, sorted."""
        return sorted(name for name in self._current_sums() if not self.path(name).is_file())

    def damaged(self) -> list[str]:
        """The files whose content is no longer what was written, sorted; reads every file."""
        sums = self._current_sums()
        return [name for name in self.names() if sha256_of(self.path(name)) not in sums[name]]

    def write(self, name: str, data: bytes | str) -> None:
        """Writes `name` whole or not at all.

        Raises:
            SubnetSearchError: when the disk is full or not writable; what was there stays.
        """
        with self.writing(name) as temporary:
            temporary.write_bytes(data.encode() if isinstance(data, str) else data)

    def write_json(self, name: str, content: Any) -> None:
        """Writes `content` as readable JSON; NaN is refused."""
        self.write(name, json.dumps(content, indent=1, allow_nan=False) + "\n")

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Lends a temporary path with the ending of `name`; what lies there in the end becomes `name`.

        For writers that want a path (safetensors, torch.export). When the block raises, nothing changes.
        """
        path = self.path(name)
        self._refuse_reader()
        temporary = temporary_beside(path)
        try:
            with telling_what_failed(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                yield temporary
                flush_file(temporary)
                self._commit(name, temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Deletes `name`, if it is there, and forgets that it was."""
        path = self.path(name)
        self._refuse_reader()
        with telling_what_failed(path):
            self._save_sums({other: sums for other, sums in self._sums.items() if other != name})
            path.unlink(missing_ok=True)

    def adopt(self, name: str, made: str | Path) -> None:
        """Moves the finished file `made` into the folder as `name`; raises like `write`."""
        with self.writing(name) as temporary:
            shutil.move(made, temporary)

    def event(self, kind: str, **fields: Any) -> None:
        """Appends `{time, kind, ...}` to events.jsonl; `time` in seconds since 1970."""
        self._refuse_reader()
        path = self.folder / EVENTS
        line = sealed({"time": time.time(), "kind": kind, **fields})
        with telling_what_failed(path), path.open("a+b") as file:
            torn = file.tell() > 0 and (file.seek(-1, 2), file.read())[1] != b"\n"
            file.write(b"\n" * torn + line)

    def events(self) -> list[dict[str, Any]]:
        """Every event in order; lines that were torn by a crash, or changed, are left out."""
        path = self.folder / EVENTS
        found = []
        for text in path.read_bytes().split(b"\n") if path.exists() else []:
            with suppress(ValueError):
                line = (
                    unsealed(text) if b'"crc"' in text else json.loads(text)
                )  # early runs had no checksum there
                if isinstance(line, dict):
                    found.append({name: value for name, value in line.items() if name != "crc"})
        return found

    def _refuse_reader(self) -> None:
        if self._lock is None:
            raise InvalidInput(f"{self.folder} is open for reading only; open the run with write=True")

    def _commit(self, name: str, temporary: Path, path: Path) -> None:
        new = sha256_of(temporary)
        self._save_sums({**self._sums, name: sorted({*self._sums.get(name, ()), new})})
        shutil.copymode(self.folder / CHECKSUMS, temporary)  # some writers let nobody else read
        put_in_place(temporary, path)
        self._save_sums({**self._sums, name: [new]})

    def _check(self, name: str, current_sum: Any) -> None:
        """Compares; a reader without the lock looks again, the writer may have been between two steps."""
        path = self.path(name)
        for _ in range(1 if self._lock else 3):
            if not path.is_file():
                problem = "is missing"
            elif name not in self._current_sums():
                problem = f"is not listed in {CHECKSUMS}"
            elif current_sum() in self._current_sums()[name]:
                return
            else:
                problem = "was truncated or changed after it was written"
        way_out = GIVEN_AGAIN if name == SETTINGS else "delete it and run the stage that makes it"
        raise InvalidInput(f"corrupt: {path} {problem}. Restore it from a copy, or {way_out}")

    def _current_sums(self) -> dict[str, list[str]]:
        return self._sums if self._lock else _load_sums(self.folder)

    def _save_sums(self, sums: dict[str, list[str]]) -> None:
        sealed = {**sums, CHECKSUMS: [_sum_of(sums)]}
        write_whole(self.folder / CHECKSUMS, json.dumps(sealed, indent=1, sort_keys=True).encode())
        self._sums = sums


def _load_sums(folder: Path) -> dict[str, list[str]]:
    path = folder / CHECKSUMS
    try:
        sums: dict[str, list[str]] = json.loads(path.read_bytes()) if path.exists() else {}
        if path.exists() and sums.pop(CHECKSUMS) != [_sum_of(sums)]:
            raise ValueError("does not have its own checksum")
        return {str(name): [str(s) for s in accepted] for name, accepted in sums.items()}
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise InvalidInput(
            f"corrupt: {path} is no table of checksums, or was changed; restore it from a copy. Without it nothing "
            "tells which files are sound: else begin anew with --overwrite"
        ) from error


def _sum_of(sums: dict[str, list[str]]) -> str:
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def _clear_up(folder: Path) -> None:
    for leftover in folder.rglob(f"{TEMPORARY}*"):
        leftover.unlink(missing_ok=True)
