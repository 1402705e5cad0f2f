"""Which knobs mean something: knobs inside skipped blocks are inactive, and every sub-net has one config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from graphlib import CycleError, TopologicalSorter
from math import prod

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidInput, nearest_names
from .knob import Knob

Places = tuple[tuple[str, ...], ...]  # where a knob acts: for each place the skippable blocks around it
Conditions = Mapping[str, Places]  # a knob is inactive when in every one of its places some block is skipped
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def checked_conditions(knobs: tuple[Knob, ...], inactive_when: Conditions) -> dict[str, Places]:
    """Returns the conditions in knob order, without knobs that are always active.

    Raises:
        InvalidInput: for names that are no (depth) knobs, a knob without a place, or blocks in circles.
    """
    names = [knob.name for knob in knobs]
    depths = {knob.name for knob in knobs if knob.kind == "depth"}
    if not isinstance(inactive_when, Mapping):
        raise InvalidInput(f"inactive_when must be a mapping from knob name to places, got {inactive_when!r}")
    for name in inactive_when:
        if name not in names:
            raise InvalidInput(f"inactive_when names the unknown knob {name!r}{nearest_names(name, names)}")
    conditions = {name: _places(name, inactive_when[name], depths) for name in names if name in inactive_when}
    conditions = {name: places for name, places in conditions.items() if all(places)}
    try:
        TopologicalSorter({name: _blocks(places) for name, places in conditions.items()}).prepare()
    except CycleError as error:
        raise InvalidInput(
            f"no block can be inside itself, but inactive_when says {' in '.join(error.args[1])}"
        ) from error
    return conditions


def _places(name: str, places: object, depths: set[str]) -> Places:
    is_nested = isinstance(places, Iterable) and not isinstance(places, str)
    inner = list(places) if is_nested else []  # type: ignore[call-overload]
    if not inner or any(isinstance(place, str) or not isinstance(place, Iterable) for place in inner):
        raise InvalidInput(
            f"inactive_when[{name!r}] must be one tuple of depth knobs per place, got {places!r}; "
            "leave out a knob that is always active"
        )
    for block in (block for place in inner for block in place):
        if not isinstance(block, str) or block not in depths:
            hint = nearest_names(block, depths)
            raise InvalidInput(f"inactive_when[{name!r}] names {block!r}, which is no depth knob{hint}")
    return tuple(tuple(place) for place in inner)


def _blocks(places: Places) -> set[str]:
    return {block for place in places for block in place}


@dataclass(frozen=True)
class Activity:
    """Compiled conditions of a space; `conditions` come from `checked_conditions`."""

    knobs: tuple[Knob, ...]
    conditions: Mapping[str, Places]

    @cached_property
    def _column(self) -> dict[str, int]:
        return {knob.name: column for column, knob in enumerate(self.knobs)}

    @cached_property
    def _rules(self) -> list[tuple[list[list[int]], list[int]]]:
        """Columns of the blocks around each place, and of the knobs with these places; outer blocks first."""
        rules: dict[Places, list[int]] = {}
        order = TopologicalSorter({name: _blocks(places) for name, places in self.conditions.items()})
        for name in order.static_order():
            if name in self.conditions:
                rules.setdefault(self.conditions[name], []).append(self._column[name])
        return [([[self._column[b] for b in p] for p in places], knobs) for places, knobs in rules.items()]

    def inactive(self, x: Ints) -> Bools:
        """Marks the inactive knobs of canonical rows: `[num_configs, num_knobs]` to the same shape."""
        marks = np.zeros(x.shape, dtype=np.bool_)
        for places, knobs in self._rules:
            marks[:, knobs] = _skipped(x, places)[:, None]
        return marks

    def canonical_rows(self, x: Ints) -> Ints:
        """Returns rows `[num_configs, num_knobs]` with inactive knobs at their largest."""
        rows = x.copy()
        for places, knobs in self._rules:
            skipped = _skipped(rows, places)
            for column in knobs:
                rows[skipped, column] = self.knobs[column].largest
        return rows

    def count(self) -> int:
        """The exact number of canonical configs."""
        factor = {knob.name: len(knob.choices) for knob in self.knobs}
        blocks = frozenset(set().union(*map(_blocks, self.conditions.values())))
        always = prod(n for name, n in factor.items() if name not in self.conditions and name not in blocks)
        pending = frozenset((name, frozenset(map(frozenset, p))) for name, p in self.conditions.items())
        return always * _count(factor, blocks, pending)


def _skipped(x: Ints, places: list[list[int]]) -> Bools:
    skipped: Bools = np.ones(len(x), dtype=np.bool_)
    for columns in places:
        skipped &= (x[:, columns] == 0).any(axis=1)
    return skipped


_Pending = tuple[str, frozenset[frozenset[str]]]  # a knob and the undecided blocks around each of its places


def _count(factor: Mapping[str, int], blocks: frozenset[str], pending: frozenset[_Pending]) -> int:
    """Counts canonical assignments of the undecided `blocks` and the `pending` knobs.

    Decides one block at a time; what falls apart into independent parts is counted part by part, and equal
    remainders once.
    """

    @cache
    def count(blocks: frozenset[str], pending: frozenset[_Pending]) -> int:
        parts = _parts(blocks, pending)
        return prod(count_part(*part) for part in parts) if len(parts) > 1 else count_part(blocks, pending)

    @cache
    def count_part(blocks: frozenset[str], pending: frozenset[_Pending]) -> int:
        waiting = {name for name, _ in pending}
        free = sorted(blocks - waiting)
        if not free:
            return 1
        uses = [block for _, places in pending for block in set().union(*places)]
        chosen = max(free, key=uses.count)
        return sum(decided(blocks, pending, chosen, kept) for kept in (True, False))

    def decided(blocks: frozenset[str], pending: frozenset[_Pending], chosen: str, kept: bool) -> int:
        ways, todo, blocks = 1, [(chosen, kept)], blocks - {chosen}
        while todo:
            block, kept = todo.pop()
            undecided = set()
            for name, places in pending:
                left = frozenset(p - {block} for p in places) if kept else _without(places, block)
                if frozenset() in left:  # active: a block among them stays a question of its own
                    ways *= 1 if name in blocks else factor[name]
                elif left:
                    undecided.add((name, left))
                elif name in blocks:  # an inactive block counts as kept
                    blocks -= {name}
                    todo.append((name, True))
            pending = frozenset(undecided)
        return ways * count(blocks, pending)

    return count(blocks, pending)


def _without(places: frozenset[frozenset[str]], block: str) -> frozenset[frozenset[str]]:
    return frozenset(place for place in places if block not in place)


def _parts(
    blocks: frozenset[str], pending: frozenset[_Pending]
) -> list[tuple[frozenset[str], frozenset[_Pending]]]:
    """Splits a counting problem into parts that share no block."""
    parts: list[tuple[set[str], set[_Pending]]] = [({block}, set()) for block in sorted(blocks)]
    for name, places in pending:
        scope = set().union(*places) | ({name} & blocks)
        joined: tuple[set[str], set[_Pending]] = (set(scope), {(name, places)})
        apart = []
        for part in parts:
            if part[0] & scope:
                joined[0].update(part[0])
                joined[1].update(part[1])
            else:
                apart.append(part)
        parts = [*apart, joined]
    return [(frozenset(scope), frozenset(items)) for scope, items in parts]
