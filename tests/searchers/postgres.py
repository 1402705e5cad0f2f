"""A PostgreSQL server of a test's own, on loopback, from the system's package."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from importlib.util import find_spec
from pathlib import Path

NOBODY = "nobody"  # the server refuses to run as root


def bin_folder() -> Path | None:
    """Where the server's programs are: of the newest version of Debian's package, else on the path."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4]))
    found = str(versions[-1]) if versions else shutil.which("initdb")
    return Path(found).parent if found else None


def why_not() -> str:
    """Why no server can be started here; "" where one can."""
    if bin_folder() is None:
        return "no PostgreSQL server is installed (Debian: apt-get install postgresql)"
    if find_spec("psycopg") is None:
        return 'psycopg is not installed (pip install "subnet-search[storage]")'
    return ""


def make_folder(folder: Path) -> None:
    """A folder for the data of a server that is not root's."""
    folder.mkdir()
    if os.getuid() == 0:
        shutil.chown(folder, NOBODY)
        for parent in folder.parents:  # a test's folder lets nobody else in
            if parent.owner() == "root" and parent != Path("/") and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)


class Server:
    """Runs from `start` to `stop`, as somebody who is not root; its data stay in between."""

    def __init__(self, folder: Path) -> None:
        programs = bin_folder()
        assert programs is not None
        self._programs, self._folder = programs, folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"postgresql://tester@127.0.0.1:{self._port}/postgres"

    def __enter__(self) -> Server:
        make_folder(self._folder)
        self._call("initdb", "--auth=trust", "--username=tester", "--encoding=UTF8", "--no-sync")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        options = f"-p {self._port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._call("pg_ctl", "-w", "-o", options, "-l", str(self._folder / "log"), "start")

    def stop(self) -> None:
        self._call("pg_ctl", "-w", "-m", "fast", "stop", check=False)

    def _call(self, program: str, *arguments: str, check: bool = True) -> None:
        command = [str(self._programs / program), "-D", str(self._folder / "data"), *arguments]
        user = NOBODY if os.getuid() == 0 else None
        done = subprocess.run(command, user=user, cwd="/", capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 or not check, done.stdout + done.stderr
