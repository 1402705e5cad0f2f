"""A MariaDB server of a test's own, on loopback, from the system's package."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

from tests.searchers.postgres import NOBODY, make_folder

USER = NOBODY if os.getuid() == 0 else None  # the server refuses to run as root
PLACES = "/usr/sbin:/usr/local/sbin"  # where Debian has servers, not on everybody's path


def program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{PLACES}")


def why_not() -> str:
    """Why no server can be started here; "" where one can."""
    if program("mariadbd") is None or program("mariadb-install-db") is None:
        return "no MariaDB server is installed (Debian: apt-get install mariadb-server)"
    if find_spec("pymysql") is None:
        return 'pymysql is not installed (pip install "subnet-search[storage]")'
    return ""


class Server:
    """Runs from `start` to `stop`, as somebody who is not root; its data stay in between."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"mysql://tester:secret@127.0.0.1:{self.port}/study"

    def __enter__(self) -> Server:
        make_folder(self._folder)
        made = subprocess.run(
            [str(program("mariadb-install-db")), *self._options(), "--auth-root-authentication-method=normal"],
            user=USER, cwd="/", capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert made.returncode == 0, made.stdout + made.stderr
        accounts = self._folder / "accounts.sql"
        accounts.write_text(
            "CREATE DATABASE IF NOT EXISTS study;\n"
            "CREATE USER IF NOT EXISTS tester@'127.0.0.1' IDENTIFIED BY 'secret';\n"
            "GRANT ALL ON study.* TO tester@'127.0.0.1';\n"
        )
        accounts.chmod(0o644)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        own = ["--bind-address=127.0.0.1", f"--port={self.port}", f"--socket={self._folder}/socket"]
        own += [f"--pid-file={self._folder}/pid", f"--init-file={self._folder}/accounts.sql"]
        own += ["--skip-name-resolve", "--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=32M"]
        self._process = subprocess.Popen(
            [str(program("mariadbd")), *self._options(), *own, f"--log-error={self._folder}/log"],
            user=USER, cwd="/",
        )  # fmt: skip
        end_s = time.monotonic() + 60
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                log = self._folder / "log"
                assert self._process.poll() is None, log.read_text()[-2000:]
                assert time.monotonic() < end_s
                time.sleep(0.1)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)

    def _options(self) -> list[str]:
        return ["--no-defaults", f"--datadir={self._folder}/data"]
