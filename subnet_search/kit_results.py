"""Reads the measurements that come back from a board, and refuses what cannot be right."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from search_spaces import InvalidInput, nearest_names

MILLISECONDS = {"s": 1e3, "ms": 1.0, "us": 1e-3}
VALUES = ("latency", "median", "time", "mean")
LEAST_MACS_PER_S, MOST_MACS_PER_S = 1e6, 1e15  # what any board does, far out on both sides
TWICE_DIFFERENT = 0.2  # two measurements of one net that differ by more are told
OUTLIER_FACTOR, OUTLIER_SPREADS = 1.5, 6.0


@dataclass(frozen=True)
class Measurement:
    """One net of a kit as a board measured it.

    Attributes:
        net: its name in the kit.
        ms: milliseconds.
        noise_ms: half its interval; None where there is none.
        line: of the file it stood in.
    """

    net: str
    ms: float
    noise_ms: float | None
    line: int


@dataclass(frozen=True)
class Results:
    """What a file of results says.

    Attributes:
        measurements: one for each net that was measured.
        failed: nets that did not run, with the reason.
        notes: what people should know of the file.
        about: what the file says of the board, as text.
    """

    measurements: tuple[Measurement, ...]
    failed: Mapping[str, str]
    notes: tuple[str, ...]
    about: Mapping[str, str]


def read_results(text: str, kit: Mapping[str, Any], source: str = "results.csv") -> Results:
    """Reads a table with one line for each net: the kit's own `results.csv`, or one that was written by hand.

    A column `net` names the net as the kit does (n01, or its file); one other column holds the time, with its
    unit in the name (`latency_ms`, `median_us`, `time_s`, `ms`) or in a column `unit`. `low_...`, `high_...`, `kit`,
    `reason` and what else there is are optional.

    Args:
        text: of the file.
        kit: what `kit.json` holds.
        source: how messages call the file.

    Raises:
        InvalidInput: no usable columns; a net that the kit does not have, another kit's checksum, times that are no
            positive numbers, or of an unknown or impossible unit. The line is named.
    """
    rows = list(csv.DictReader(io.StringIO(text.lstrip("\ufeff"))))
    names = [name.strip() for name in (rows[0] if rows else ()) if name]
    rows = [{(k or "").strip(): (v or "").strip() for k, v in r.items() if isinstance(v, str)} for r in rows]
    if "net" not in names or not rows:
        raise InvalidInput(
            f"{source} must be a table with a column net and at least one line, its columns are "
            f"{', '.join(names) or 'none'}"
        )
    column, unit = _time_column(names, source)
    nets = {name: net for net in kit["nets"] for name in (net["net"], net["key"], *net["files"].values())}
    by_net: dict[str, list[Measurement]] = {}
    failed: dict[str, str] = {}
    for line, row in enumerate(rows, start=2):
        place = f"{source}, line {line}"
        if row.get("kit") and row["kit"] != kit["checksum"]:
            raise InvalidInput(
                f"{place}: measured with another kit (checksum {row['kit']}, this one has {kit['checksum']}); import "
                "it into the run whose kit that was, or measure again with this kit's files"
            )
        if row["net"] not in nets:
            near = nearest_names(row["net"], [net["net"] for net in kit["nets"]])
            raise InvalidInput(
                f"{place}: this kit has no net {row['net']!r}{near}; delete the line, or name the kit that it belongs "
                "to with --number"
            )
        net = nets[row["net"]]["net"]
        if not row.get(column):
            failed[net] = row.get("reason") or "not measured"
            continue
        factor = MILLISECONDS[unit or _unit(row.get("unit", ""), place)]
        ms = _positive(row[column], place) * factor
        _check_speed(ms, nets[row["net"]]["macs"], place)
        by_net.setdefault(net, []).append(Measurement(net, ms, _noise(row, column, factor), line))
    if not by_net:
        raise InvalidInput(f"{source} holds no time at all; reasons: {sorted(set(failed.values()))}")
    return Results(
        tuple(_merged(each) for each in by_net.values()),
        {net: reason for net, reason in failed.items() if net not in by_net},
        tuple(_notes(by_net, failed, len(kit["nets"]))),
        {name: rows[0][name] for name in ("device", "runtime", "threads") if rows[0].get(name)},
    )


def outliers(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Marks measurements far from what the others let expect: by a factor of 1.5, and six times the usual distance.

    Args:
        predicted: of each row by a model that has not seen it `[num_rows]`.
        measured: `[num_rows]`.
    """
    off = np.abs(np.log(np.maximum(predicted, 1e-12) / measured))
    usual = max(float(np.median(off)) / 0.6745, 1e-6)
    return np.asarray(off > max(math.log(OUTLIER_FACTOR), OUTLIER_SPREADS * usual))


def _time_column(names: Sequence[str], source: str) -> tuple[str, str | None]:
    for name in names:
        kind, _, unit = name.lower().rpartition("_")
        if unit in MILLISECONDS and kind in (*VALUES, ""):
            return name, unit
    for name in names:
        if name.lower() in VALUES:
            if "unit" in names:
                return name, None
            raise InvalidInput(
                f"{source}: column {name!r} does not say its unit; call it {name}_ms, {name}_us or {name}_s, or add a "
                "column unit"
            )
    raise InvalidInput(
        f"{source} needs a column with the time, such as latency_ms, latency_us or latency_s; its columns are "
        f"{', '.join(names)}"
    )


def _unit(written: str, place: str) -> str:
    known = {"msec": "ms", "sec": "s", "usec": "us", "µs": "us", "μs": "us"}
    unit = known.get(written.lower(), written.lower())
    if unit not in MILLISECONDS:
        raise InvalidInput(f"{place}: the unit must be s, ms or us, got {written!r}")
    return unit


def _positive(written: str, place: str) -> float:
    try:
        value = float(written)
    except ValueError:
        raise InvalidInput(
            f"{place}: a time must be a plain number, got {written!r}; the unit goes into the column's name"
        ) from None
    if not (math.isfinite(value) and value > 0):
        raise InvalidInput(
            f"{place}: a time must be positive and finite, got {written}; measure that net again, or delete the line"
        )
    return value


def _check_speed(ms: float, macs: float, place: str) -> None:
    speed = macs / (ms / 1e3)
    if not LEAST_MACS_PER_S <= speed <= MOST_MACS_PER_S:
        raise InvalidInput(
            f"{place}: {ms:.4g} ms for {macs:.3g} multiply-adds are {speed:.2g} a second, which no board does; is the "
            "unit right?"
        )


def _noise(row: Mapping[str, str], column: str, factor: float) -> float | None:
    suffix = re.sub(r"^[^_]*", "", column)
    try:
        low, high = (float(row[f"{side}{suffix}"]) * factor for side in ("low", "high"))
    except (KeyError, ValueError):
        return None
    return (high - low) / 2 if math.isfinite(high - low) and high >= low else None


def _merged(each: Sequence[Measurement]) -> Measurement:
    """The middle one of several measurements of one net."""
    ordered = sorted(each, key=lambda one: one.ms)
    middle = ordered[len(ordered) // 2]
    ms = float(np.median([one.ms for one in each]))
    return Measurement(middle.net, ms, middle.noise_ms, middle.line)


def _notes(by_net: Mapping[str, Sequence[Measurement]], failed: Mapping[str, str], count: int) -> list[str]:
    notes = []
    for net, each in by_net.items():
        times = [one.ms for one in each]
        if len(each) > 1:
            apart = max(times) / min(times) - 1
            told = (
                f"; they differ by {100 * apart:.0f} %: was the board busy?"
                if apart > TWICE_DIFFERENT
                else ""
            )
            notes.append(f"{net} was measured {len(each)} times, the median counts{told}")
    notes += [f"{net} did not run: {reason}" for net, reason in failed.items() if net not in by_net]
    absent = count - len(set(by_net) | set(failed))
    return [*notes, *([f"{absent} of the kit's {count} nets are not in the file"] if absent else [])]
