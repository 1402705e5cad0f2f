"""Which storages are opened, and what is said of those that cannot be."""

from __future__ import annotations

from importlib import util
from pathlib import Path

import pytest

from search_spaces import InvalidInput
from subnet_search.cli import run_command
from subnet_search.record import create_run
from subnet_search.searchers import storage
from subnet_search.searchers.storage import open_storage, storage_url


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("study.db", r"is a URL such as sqlite:.*got 'study.db'"),
        ("oracle://me:secret@host/db", r"SQLite, PostgreSQL or MySQL .* got 'oracle://me:\*\*\*@host/db'"),
        ("sqlite://", "a storage that drivers share is a file"),
        ("sqlite:////nowhere/at/all/study.db", "would lie in /nowhere/at/all, which is no folder"),
        ("sqlite:////tmp", "is a folder; give the path of a file"),
        ("sqlite+aiosqlite:////tmp/study.db", "spoken to by pysqlite, .*; begin the URL with sqlite://"),
        ("postgresql+nosuch://me@host/db", r"spoken to by psycopg or psycopg2, got .*; begin the URL"),
        (
            "mysql://me:secret@host",
            r"one database of a server, got 'mysql://me:\*\*\*@host' without its name",
        ),
    ],
)
def test_a_url_that_cannot_work_is_refused_without_its_password(url: str, rule: str) -> None:
    with pytest.raises(InvalidInput, match=rule):
        open_storage(url)


@pytest.mark.parametrize("url", ["postgresql://me:secret@host/db", "mysql+pymysql://me:secret@host/db"])
def test_a_missing_driver_is_named_with_the_way_out(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "find_spec", lambda name: None)
    with pytest.raises(
        InvalidInput, match=r"needs the Python package (psycopg|pymysql), .*\[storage\]"
    ) as told:
        open_storage(url)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("url", "installed", "found"),
    [
        ("postgresql://me@host/db", {"psycopg"}, "postgresql+psycopg://me@host/db"),
        ("postgres://me@host/db", {"psycopg2"}, "postgresql+psycopg2://me@host/db"),
        ("postgresql+psycopg2://me@host/db", {"psycopg", "psycopg2"}, "postgresql+psycopg2://me@host/db"),
        ("mysql://me@host:3307/db", {"pymysql", "MySQLdb"}, "mysql+pymysql://me@host:3307/db"),
        ("mysql://me@host/db", {"MySQLdb"}, "mysql+mysqldb://me@host/db"),
    ],
)
def test_the_driver_that_is_installed_is_taken(
    url: str, installed: set[str], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "find_spec", lambda name: name if name in installed else None)
    assert storage_url(url).render_as_string(hide_password=False) == found


@pytest.mark.skipif(util.find_spec("psycopg") is None, reason="psycopg is not installed")
def test_a_server_that_is_not_there_is_told_of_at_once() -> None:
    with pytest.raises(InvalidInput, match=r"cannot be opened: .*Look whether its server runs") as told:
        open_storage("postgresql://me:secret@127.0.0.1:9/db")
    assert "secret" not in str(told.value)


def test_a_file_that_cannot_be_a_database_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "notes.db"
    file.write_text("these are notes, and no database" * 100)
    with pytest.raises(InvalidInput, match=r"cannot be opened: .*not a database.* Look whether the path"):
        open_storage(f"sqlite:///{file}")
    monkeypatch.setattr("os.access", lambda place, mode: place != tmp_path)
    with pytest.raises(InvalidInput, match=rf"this user may not write {tmp_path}; choose another path"):
        open_storage(f"sqlite:///{file}")


def test_the_command_line_refuses_a_storage_before_any_stage_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = 'name = "r"\n[model]\nname = "subnet_search.small_models:digits_cnn"\n'
    create_run(tmp_path / "run", settings).close()
    assert run_command(["search", str(tmp_path / "run"), "--storage", "study.db"]) == 2
    told = capsys.readouterr().err
    assert "refused: a storage is a URL such as sqlite:" in told
    assert "prepare" not in told


def test_a_file_is_made_and_opened_again(tmp_path: Path) -> None:
    for _ in range(2):
        assert open_storage(f"sqlite:///{tmp_path}/study.db").get_all_studies() == []
