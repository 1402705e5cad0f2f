"""Opens the database that Optuna keeps studies in; what cannot work is refused with the way out."""

from __future__ import annotations

import random
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import BaseStorage

from search_spaces import InvalidInput

if TYPE_CHECKING:
    from sqlalchemy import URL

DRIVERS = {"postgresql": ("psycopg", "psycopg2"), "mysql": ("pymysql", "mysqldb")}  # the first that is there
MODULES = {"mysqldb": "MySQLdb"}
CONNECT_S = 10
LOCKED_S = 60  # how long SQLite waits for another driver's writing
TRIES = 5  # of making the tables, which several drivers may begin at once
EXAMPLES = "sqlite:////shared/study.db, postgresql://USER@HOST/DATABASE or mysql://USER@HOST/DATABASE"


def open_storage(url: str) -> BaseStorage:
    """The storage at a URL, its tables made if they are not there.

    Raises:
        InvalidInput: it is no URL of SQLite, PostgreSQL or MySQL, the package that speaks to it is not installed, or
            nothing answers there.
    """
    parsed = storage_url(url)
    shown = hidden(parsed)
    for attempt in range(TRIES):
        try:
            backend = optuna.storages.RDBStorage(
                parsed.render_as_string(hide_password=False), engine_kwargs=_engine_options(parsed)
            )
            return optuna.storages.get_storage(backend)
        except Exception as error:  # every driver has its own
            if attempt + 1 == TRIES or not _may_pass(error):
                raise InvalidInput(
                    f"the storage {shown} cannot be opened: {_first_line(error)}. Look whether its server runs, the "
                    "database exists, and user and password are right"
                ) from error
            time.sleep(random.random())
    raise AssertionError


def storage_url(url: str) -> URL:
    """The URL with the package that speaks to that database; raises like `open_storage`."""
    import sqlalchemy

    try:
        parsed = sqlalchemy.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise InvalidInput(f"a storage is a URL such as {EXAMPLES}, got {url!r}") from None
    name, _, driver = parsed.drivername.partition("+")
    name = {"postgres": "postgresql", "mariadb": "mysql"}.get(name, name)
    if name == "sqlite":
        _check_file(parsed)
        return parsed
    if name not in DRIVERS:
        raise InvalidInput(f"a storage is SQLite, PostgreSQL or MySQL ({EXAMPLES}), got {hidden(parsed)!r}")
    known = (driver,) if driver else DRIVERS[name]
    found = next((one for one in known if find_spec(MODULES.get(one, one)) is not None), None)
    if found is None:
        raise InvalidInput(
            f"the storage {hidden(parsed)} needs the Python package {known[0]}, which is not installed; "
            'get it with: pip install "subnet-search[storage]"'
        )
    return parsed.set(drivername=f"{name}+{found}")


def hidden(url: URL) -> str:
    """The URL for people, without its password."""
    return url.render_as_string(hide_password=True)


def _check_file(url: URL) -> None:
    if url.database in (None, "", ":memory:"):
        raise InvalidInput(
            f"a storage that drivers share is a file, got {hidden(url)!r}; give sqlite:///study.db, or "
            "sqlite:////shared/study.db with a path from the root"
        )
    folder = Path(str(url.database)).parent
    if not folder.is_dir():
        raise InvalidInput(
            f"the storage {hidden(url)} would lie in {folder}, which is no folder; make it first"
        )


def _engine_options(url: URL) -> dict[str, Any]:
    if url.drivername.startswith("sqlite"):
        return {"connect_args": {"timeout": LOCKED_S}}
    # asks a connection whether it lives before it is used: a server may have been started again
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.drivername.partition("+")[2] in {one for names in DRIVERS.values() for one in names}:
        options["connect_args"] = {"connect_timeout": CONNECT_S}
    return options


def _may_pass(error: Exception) -> bool:
    """Whether another driver was just making the same tables."""
    told = str(error).lower()
    return "already exists" in told or "unique" in told or "duplicate" in told or "locked" in told


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
