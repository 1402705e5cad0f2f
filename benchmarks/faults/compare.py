"""Whether two run folders hold the same, times apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from subnet_search.record.run import CHECKSUMS, EVENTS, SETTINGS

TIMES = {"seconds", "time"}
NOT_COMPARED = {CHECKSUMS, EVENTS, SETTINGS, "report.html"}  # sums of files with times in them, times, a name


def differences(found: Path, wanted: Path) -> list[str]:
    """The files that differ: weights bit by bit, records but for their times, other formats by being there."""
    names = {*_names(found), *_names(wanted)}
    return sorted(name for name in names if not _equal(found / name, wanted / name))


def _names(folder: Path) -> set[str]:
    files = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {name for name in files if name not in NOT_COMPARED and not name.startswith((".", "figures/"))}


def _equal(found: Path, wanted: Path) -> bool:
    if not (found.is_file() and wanted.is_file()):
        return False
    if found.read_bytes() == wanted.read_bytes():
        return True
    if found.suffix == ".safetensors":
        mine, other = load_file(found), load_file(wanted)
        return mine.keys() == other.keys() and all(np.array_equal(mine[name], other[name]) for name in mine)
    if found.suffix in (".json", ".jsonl"):
        try:
            return _records(found) == _records(wanted)
        except ValueError:  # not even a record
            return False
    return found.suffix == ".pt2"  # an archive with times in it; its proof compares the content


def _records(path: Path) -> list[Any]:
    text = path.read_text("utf-8")
    return [
        _timeless(json.loads(part)) for part in (text.splitlines() if path.suffix == ".jsonl" else [text])
    ]


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(item) for name, item in value.items() if name not in {*TIMES, "crc"}}
    return [_timeless(item) for item in value] if isinstance(value, list) else value
