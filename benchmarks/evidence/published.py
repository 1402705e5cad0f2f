"""Evidence goes on from what is published: the parts of a page come back as files from the JSON beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from subnet_search.record.atomic import write_whole

RESULTS = Path(__file__).parents[2] / "reports" / "results"


def published(name: str) -> dict[str, Any]:
    """The numbers of a page, or nothing if there is no page yet."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return found


def restore(parts: Iterable[tuple[Path, Any]]) -> None:
    """Writes what is not there; a file that is there is newer."""
    for path, content in parts:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, (json.dumps(content, indent=1) + "\n").encode())
