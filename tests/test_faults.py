"""The command that breaks runs on purpose, much reduced."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_no_fault_that_is_tried_does_harm_and_the_table_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.evidence.faults", "--share", "0.01", "--out", str(tmp_path)]
    some = [
        "kill_at_writes",
        "torn_journal",
        "damaged_files",
        "full_disk",
        "odd_evaluators",
        "mutated_recipes",
    ]
    done = subprocess.run([*command, "--only", *some], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    groups = json.loads((tmp_path / "faults.json").read_text())["groups"]
    assert list(groups) == some
    rows = [row for group in groups.values() for row in group["rows"]]
    assert all(row["tries"] > 0 and row["harm"] == [] and row["unequal"] == 0 for row in rows)
    page = (tmp_path / "faults.md").read_text()
    assert f"**{sum(row['tries'] for row in rows)} tries, 0 harmed**" in page
    again = subprocess.run([*command, "--only", "torn_journal"], cwd=ROOT, capture_output=True, text=True)
    assert (again.returncode, again.stderr) == (0, "")  # it is finished already
