"""Run folders that are written once and only read by the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.view import RunView, read_run
from tests.reports.synthetic import write_run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="session")
def view(finished: Path) -> RunView:
    return read_run(finished)
