"""The section of the page about branches and sub-paths: what each number of branches, and each combination, gives."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

from reports.sections import Section
from reports.units import NO_BREAK, text
from reports.view import RunView

BRANCH_KNOB = "branches"
MOST_STAGES = 6  # of more, combinations are too many for a table


class Row(NamedTuple):
    """One sub-net of a table; what was not measured is None."""

    name: str
    macs: float
    with_reuse: float | None  # multiply-adds of all rows up to here, each computed once
    top1_percent: float | None
    on_front: bool


def section(run: RunView) -> Section | None:
    """The section, or None for a run of neither."""
    branches, stages = run.coverage.get("branches"), run.coverage.get("sub_paths")
    if run.space is None or run.costs is None or not (branches or stages):
        return None
    tables: list[dict[str, Any]] = []
    if branches:
        tables.append(_table("Branches", branch_rows(run), _of_branches(branches)))
    if stages and len(stages) <= MOST_STAGES:
        tables.append(_table("Sub-paths", path_rows(run), _of_paths(stages)))
    return {"tables": tables}


def branch_rows(run: RunView) -> list[Row]:
    """The first 1, 2, ... branches, with all blocks."""
    added, rows = run.coverage["branches"]["row_macs"], []
    for k in range(1, len(added) + 1):
        rows.append(_row(run, str(k), {BRANCH_KNOB: k}, float(sum(added[:k]))))
    return rows


def path_rows(run: RunView) -> list[Row]:
    """All combinations of kept (F) and skipped (T) sub-paths, the whole net first, with all branches."""
    knobs = [stage["knob"] for stage in run.coverage["sub_paths"]]
    rows = []
    for marks in itertools.product("FT", repeat=len(knobs)):
        chosen = {knob: int(mark == "F") for knob, mark in zip(knobs, marks, strict=True)}
        rows.append(_row(run, "".join(marks), chosen, None))
    return rows


def _row(run: RunView, name: str, chosen: Mapping[str, int], with_reuse: float | None) -> Row:
    assert run.space is not None
    assert run.costs is not None
    config = run.space.canonical({**run.space.largest(), **chosen})
    macs = float(run.costs.macs(run.space.encode([config]))[0])
    found = next((seen.values.get("top1_percent") for seen in run.seen if seen.config == config), None)
    return Row(name, macs, with_reuse, found, config.key in run.front)


def _table(title: str, rows: list[Row], sentence: str) -> dict[str, Any]:
    whole = max(row.macs for row in rows)
    return {
        "title": title,
        "sentence": sentence,
        "reuse": any(row.with_reuse is not None for row in rows),
        "rows": [
            {
                "name": row.name,
                "macs": text("macs", row.macs),
                "share": f"{100 * row.macs / whole:.1f}{NO_BREAK}%",
                "with_reuse": "" if row.with_reuse is None else text("macs", row.with_reuse),
                "top1": "" if row.top1_percent is None else text("top1_percent", row.top1_percent),
                "front": row.on_front,
            }
            for row in rows
        ],
    }


def _of_branches(branches: Mapping[str, Any]) -> str:
    return (
        f"The channels of every layer fall into {branches['count']} groups, and no group reads one after it. By "
        "itself, a sub-net of the first groups is a dense network. In an anytime loop each group is computed after "
        "those before it, once, and weights above the diagonal are left out: that costs what the fourth column says."
    )


def _of_paths(stages: list[Mapping[str, Any]]) -> str:
    names = "; ".join(", ".join(stage["skippable"]) for stage in stages)
    return (
        f"Of each stage the last blocks are kept (F) or skipped (T) as one: {names}. Only the whole net and the one "
        "without any of them were trained."
    )
