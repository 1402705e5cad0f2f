"""The section about channel steps, from plain records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from reports import aligned
from reports.page import build_page
from reports.view import RunView

UP: dict[str, Any] = {
    "macs_percent": 5.0,
    "top1_points": [-0.5, -1.25, 0.25],
    "time_percent": [2.0, 1.5, 2.5],
    "reason": "",
}
DOWN: dict[str, Any] = {**UP, "time_percent": None, "reason": "no operator sort"}
FOUND: dict[str, Any] = {
    "profile": {"runtime": "openvino 1"},
    "steps": {"conv 3x3": 8},
    "members": [
        {"key": "aaaa", "top1_percent": 90.0, "up": UP, "down": DOWN},
        {"key": "bbbb", "top1_percent": 80.0, "up": None, "down": None},
    ],
}


def test_each_way_of_rounding_is_a_row_with_intervals(view: RunView) -> None:
    section = aligned.section(replace(view, aligned=FOUND))
    assert section is not None
    up, down = section["rows"]
    assert (up["points"], up["macs"]) == ("−0.50 points (−1.25 to +0.25)", "+5.0\u00a0%")
    assert up["time"] == "+2.0\u00a0% (+1.5 to +2.5)"
    assert (down["way"], down["time"]) == ("down", "no operator sort")
    assert "8 for conv 3x3" in section["sentence"]
    assert "1 member of these had such widths already" in section["sentence"]


@pytest.mark.slow
def test_the_page_has_the_section_only_where_alignment_was_looked_at(view: RunView) -> None:
    assert "Channel steps" not in build_page(view)[0]
    page = build_page(replace(view, aligned=FOUND))[0]
    assert "no operator sort" in page
    assert "−1.25 to +0.25" in page
