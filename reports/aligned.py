"""The section of the page about channel steps: what rounding the front's widths to them costs and wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reports.sections import Section
from reports.units import NO_BREAK, count
from reports.view import RunView

WAYS = ("up", "down")
MINUS = "\u2212"


def section(run: RunView) -> Section | None:
    """The section, or None where nobody looked at alignment."""
    members = run.aligned.get("members")
    if not members:
        return None
    rows = [row for member in members for row in _rows(member)]
    steps = ", ".join(f"{step} for {kind}" for kind, step in run.aligned["steps"].items())
    runtime = run.aligned["profile"].get("runtime", "the target")
    same = sum(all(member[way] is None for way in WAYS) for member in members)
    sentence = (
        f"Time on the target ({runtime}) goes up in steps of channels: {steps}. {count(len(members), 'member')} of the "
        "front beside themselves with every width rounded up or down to these steps."
    )
    if same:
        sentence += f" {count(same, 'member')} of these had such widths already."
    return {
        "sentence": sentence,
        "caption": "Changes with intervals of 95 %. Accuracy: search-validation, the same images, nothing tuned. Time: "
        "measured beside the member itself. Members are on the front because they did well on these very "
        "images, which rounded ones were not chosen for; so the cost in accuracy is told rather too high.",
        "rows": rows,
    }


def _rows(member: Mapping[str, Any]) -> list[dict[str, str]]:
    found = []
    for way in WAYS:
        one = member[way]
        if one is None:
            continue
        found.append(
            {
                "key": member["key"],
                "top1": f"{member['top1_percent']:.2f}{NO_BREAK}%",
                "way": way,
                "macs": f"{_signed(one['macs_percent'], 1)}{NO_BREAK}%",
                "points": _within(one["top1_points"], 2, " points"),
                "time": one["reason"]
                if one["time_percent"] is None
                else _within(one["time_percent"], 1, f"{NO_BREAK}%"),
            }
        )
    return found


def _within(values: Sequence[float], digits: int, unit: str) -> str:
    """A change and its interval."""
    middle, low, high = (_signed(value, digits) for value in values)
    return f"{middle}{unit} ({low} to {high})"


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", MINUS)
