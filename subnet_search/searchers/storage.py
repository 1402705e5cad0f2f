"""Opens the database that Optuna keeps studies in; what cannot work is refused with the way out."""

from __future__ import annotations

import os
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

# the first that is there is taken; SQLite's comes with Python
DRIVERS = {"postgresql": ("psycopg", "psycopg2"), "mysql": ("pymysql", "mysqldb"), "sqlite": ("pysqlite",)}
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
                    f"the storage {shown} cannot be opened: {_first_line(error)}. Look whether {_looked_at(parsed)}"
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
    if name not in DRIVERS:
        raise InvalidInput(f"a storage is SQLite, PostgreSQL or MySQL ({EXAMPLES}), got {hidden(parsed)!r}")
    if driver and driver not in DRIVERS[name]:
        raise InvalidInput(
            f"a storage of {name} is spoken to by {' or '.join(DRIVERS[name])}, got {hidden(parsed)!r}; begin the URL "
            f"with {name}://"
        )
    if name == "sqlite":
        _check_file(parsed)
        return parsed
    if not parsed.database:
        raise InvalidInput(
            f"a storage is one database of a server, got {hidden(parsed)!r} without its name; give {EXAMPLES}"
        )
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
    file = Path(str(url.database))
    if not file.parent.is_dir():
        raise InvalidInput(
            f"the storage {hidden(url)} would lie in {file.parent}, which is no folder; make it first"
        )
    if file.is_dir():
        raise InvalidInput(f"the storage {hidden(url)} is a folder; give the path of a file in it")
    for place in (file, file.parent):  # SQLite makes other files beside it
        if place.exists() and not os.access(place, os.W_OK):
            raise InvalidInput(
                f"the storage {hidden(url)} cannot be written: this user may not write {place}; choose another path, "
                "or change its permissions"
            )


def _looked_at(url: URL) -> str:
    """What is to be looked at where it cannot be opened."""
    if url.drivername.startswith("sqlite"):
        return "the path is one of an SQLite database, or of none yet, on a disk that can be written"
    return "its server runs, the database exists, and user and password are right"


def _engine_options(url: URL) -> dict[str, Any]:
    if url.drivername.startswith("sqlite"):
        return {"connect_args": {"timeout": LOCKED_S}}
    # asks a connection whether it lives before it is used: a server may have been started again
    return {"pool_pre_ping": True, "connect_args": {"connect_timeout": CONNECT_S}}


def _may_pass(error: Exception) -> bool:
    """Whether another driver was just making the same tables."""
    told = str(error).lower()
    return "already exists" in told or "unique" in told or "duplicate" in told or "locked" in told


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
