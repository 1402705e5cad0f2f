"""Run folders that are written once and only read by the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.reading import read_run
from reports.view import RunView
from tests.reports.synthetic import MEASURED, OBJECTIVES, write_path, write_run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="session")
def view(finished: Path) -> RunView:
    return read_run(finished)


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that searched by latency and a metric of the user's own beside top-1."""
    folder = tmp_path_factory.mktemp("runs") / "measured"
    return write_run(folder, evaluations=25, chosen=2, objectives=[OBJECTIVES[0], *MEASURED])


@pytest.fixture(scope="session")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a path, three of whose five sub-nets are evaluated after joint training."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "walked", evaluations=8, chosen=0)
    write_path(folder)
    return folder
