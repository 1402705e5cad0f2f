"""Limits on costs: what is feasible, and the nearest config that is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from .activity import Bools, Ints
from .config import SubnetConfig
from .costs import COST_NAMES, CostTable
from .errors import InvalidInput, nearest_names
from .space import SearchSpace

RAY_POINTS = 1025  # places tried between the smallest widths and the ones asked for
ORDERED = ("width", "branch", "resolution")  # the kinds of knobs that shrink gradually

Limits = Mapping[str, float]  # name of a cost -> its largest allowed value


def within_limits(costs: CostTable, limits: Limits, x: NDArray[np.integer]) -> Bools:
    """Marks the canonical rows `[num_configs, num_knobs]` whose every cost is at most its limit."""
    fits: Bools = np.ones(len(x), dtype=np.bool_)
    for name, values in costs.evaluate(np.asarray(x, dtype=np.int64), limits).items():
        fits &= values <= limits[name]
    return fits


def check_limits(space: SearchSpace, costs: CostTable, limits: Limits) -> None:
    """Refuses limits that no sub-net can meet.

    Raises:
        InvalidInput: for a name that is no cost, a limit that is no positive number, a limit below what the
            smallest sub-net costs (the message says the nearest feasible value), or a table of another space.
    """
    if costs.knobs != space.names:
        raise InvalidInput(
            "the cost table and the space must have the same knobs in the same order; convert again"
        )
    for name, limit in limits.items():
        if name not in COST_NAMES:
            hint = nearest_names(name, COST_NAMES)
            raise InvalidInput(f"a cost limit must be on one of {', '.join(COST_NAMES)}, got {name!r}{hint}")
        if (
            isinstance(limit, bool)
            or not isinstance(limit, int | float | np.number)
            or not 0 < limit < math.inf
        ):
            raise InvalidInput(f"the limit on {name} must be a positive number, got {limit!r}")
    least = costs.evaluate(space.encode([space.smallest()]), limits)
    for name, values in least.items():
        if values[0] > limits[name]:
            raise InvalidInput(
                f"no sub-net has {name} <= {limits[name]:,.12g}; the nearest feasible value is {values[0]:,} "
                "(the smallest sub-net): raise the limit or let the space go smaller"
            )


def project(space: SearchSpace, costs: CostTable, limits: Limits, config: Mapping[str, int]) -> SubnetConfig:
    """Returns the config itself (canonical) when it meets the limits, else a near one that does.

    Widths and the resolution shrink together towards the smallest, keeping the depth; only where that is not enough are
    blocks skipped, no more than needed. Then widths grow back step by step while the limits hold. Deterministic.

    Raises:
        InvalidInput: as `check_limits`, and for a config that is not of the space.
    """
    check_limits(space, costs, limits)
    row = space.encode([config])
    if not within_limits(costs, limits, row)[0]:
        asked = _skip_blocks(space, costs, limits, row)
        row = _refill(space, costs, limits, _shrink(space, costs, limits, asked), asked)
    return space.decode(row)[0]


def _columns(space: SearchSpace, kinds: tuple[str, ...] = ORDERED) -> list[int]:
    return [column for column, knob in enumerate(space.knobs) if knob.kind in kinds]


def _at_smallest(space: SearchSpace, rows: Ints, kinds: tuple[str, ...] = ORDERED) -> Ints:
    rows = rows.copy()
    for column in _columns(space, kinds):
        rows[:, column] = space.knobs[column].smallest
    return space.canonical_rows(rows)


def _skip_blocks(space: SearchSpace, costs: CostTable, limits: Limits, asked: Ints) -> Ints:
    """Skips blocks of the one row `asked` until its smallest widths meet the limits; none of them needlessly."""
    depths = _columns(space, ("depth",))
    bounds = np.array(list(limits.values()), dtype=np.float64)
    skipped: list[int] = []

    def without(columns: list[int]) -> Ints:
        row = asked.copy()
        row[:, columns] = 0
        return space.canonical_rows(row)

    def feasible(row: Ints) -> bool:
        return bool(within_limits(costs, limits, _at_smallest(space, row))[0])

    while not feasible(row := without(skipped)):
        kept = [column for column in depths if row[0, column] and space.active_rows(row)[0, column]]
        if not kept:  # only unordered knobs are left to change
            asked = _at_smallest(space, asked, ("choice",))
            break
        rows = _at_smallest(space, np.concatenate([without([*skipped, column]) for column in kept]))
        values = costs.evaluate(rows, limits)
        used = (np.stack(list(values.values()), axis=1) / bounds).max(axis=1)  # share of the tightest limit
        # of the blocks that suffice alone the one that wastes least, else the one that helps most
        best = np.argmax(np.where(used <= 1, used, -1)) if (used <= 1).any() else np.argmin(used)
        skipped.append(kept[best])
    for column in skipped.copy():
        if feasible(without(fewer := [other for other in skipped if other != column])):
            skipped = fewer
    return without(skipped)


def _shrink(space: SearchSpace, costs: CostTable, limits: Limits, asked: Ints) -> Ints:
    """Returns the largest feasible point on the straight line from the smallest widths to the row `asked`."""
    share = np.linspace(0.0, 1.0, RAY_POINTS)
    rows = np.repeat(asked, RAY_POINTS, axis=0)
    for column in _columns(space):
        choices = np.array(space.knobs[column].choices)
        targets = choices[0] + share * (asked[0, column] - choices[0])
        rows[:, column] = choices[np.searchsorted(choices, targets, side="right") - 1]
    rows = space.canonical_rows(rows)
    best = np.flatnonzero(within_limits(costs, limits, rows))[-1]
    return rows[best : best + 1]


def _refill(space: SearchSpace, costs: CostTable, limits: Limits, row: Ints, asked: Ints) -> Ints:
    """Lets the knobs furthest behind `asked` grow one choice at a time while the limits hold."""
    growing = [column for column in _columns(space) if row[0, column] < asked[0, column]]
    while growing:
        growing.sort(key=lambda column: _progress(space, column, row, asked))
        rows = np.repeat(row, len(growing), axis=0)  # row i: the first i + 1 knobs one choice larger
        for i, column in enumerate(growing):
            choices = space.knobs[column].choices
            rows[i:, column] = choices[choices.index(row[0, column]) + 1]
        fits = within_limits(costs, limits, rows)
        grown = len(fits) if fits.all() else int(np.argmin(fits))
        if grown:
            row = rows[grown - 1 : grown]
        full = growing[grown : grown + 1]  # costs only grow, so what does not fit now never will
        growing = [column for column in growing if column not in full and row[0, column] < asked[0, column]]
    return row


def _progress(space: SearchSpace, column: int, row: Ints, asked: Ints) -> tuple[Fraction, int]:
    smallest = space.knobs[column].smallest
    return Fraction(int(row[0, column] - smallest), int(asked[0, column] - smallest)), column
