"""Channel groups: the rungs that a path from the whole net down to a small one may take."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..config import SubnetConfig
from ..errors import InvalidInput
from ..knob import Knob, whole_number
from ..space import SearchSpace

Ladders = Mapping[str, tuple[int, ...]]  # knob -> its rungs, descending from its largest choice

MOST_GROUPS_TRIED = 64  # for the hint of an error


def ladders(
    space: SearchSpace, groups: int | None = None, step: int | None = None, floor: float = 0.0
) -> dict[str, tuple[int, ...]]:
    """The widths that a path may take in every layer, from the largest down; blocks are kept or skipped.

    Rungs are choices of their knob; all choices of the resolution are. Knobs of other kinds have no ladder: a path
    leaves them at their largest.

    Args:
        space: the knobs and their choices.
        groups: every layer falls into so many groups of equal size, which are dropped whole.
        step: rungs are the choices that are multiples of so many channels, as hardware may like them.
            Without groups and step every choice is a rung.
        floor: the share of its channels that every layer keeps at least; 0.0: down to its smallest choice.

    Raises:
        InvalidInput: for groups that a layer does not fall into or does not offer, a floor below one group,
            numbers that make no sense, or both groups and step.
    """
    if groups is not None and step is not None:
        raise InvalidInput(f"give groups= or step=, not both; got groups={groups!r} and step={step!r}")
    if isinstance(floor, bool) or not isinstance(floor, int | float) or not 0 <= floor <= 1:
        raise InvalidInput(f"the floor of layers must be a share from 0 to 1, got {floor!r}")
    if groups is not None:
        if whole_number(groups, "groups per layer") < 2:
            raise InvalidInput(f"groups per layer must be at least 2, got {groups}")
        if 0 < floor * groups < 1 - 1e-9:
            raise InvalidInput(
                f"the floor must leave every layer at least one of its {groups} groups, but floor={floor:g} is "
                f"less than 1/{groups} = {1 / groups:.4g}; raise the floor or take more groups"
            )
        return _spread(space, {k.name: _group_rungs(space, k, groups, floor) for k in _widths(space)})
    step = 1 if step is None else whole_number(step, "the step in channels")
    if step < 1:
        raise InvalidInput(f"the step in channels must be at least 1, got {step}")
    return _spread(space, {k.name: _step_rungs(k, step, floor) for k in _widths(space)})


def steps_down(
    space: SearchSpace, config: Mapping[str, int], ladders: Ladders
) -> list[tuple[str, SubnetConfig]]:
    """Every way to go one rung down: the active knobs that can, in knob order, and the canonical configs.

    Args:
        space: the space of `config`.
        config: where the step begins; its values need not be rungs.
        ladders: rungs by knob, from `ladders`.
    """
    row = space.encode([config])
    active = space.active_rows(row)[0]
    names, rows = [], []
    for column, knob in enumerate(space.knobs):
        below = [rung for rung in ladders.get(knob.name, ()) if rung < row[0, column]]
        if below and active[column]:
            names.append(knob.name)
            rows.append(row[0].copy())
            rows[-1][column] = max(below)
    return list(zip(names, space.decode(np.array(rows)), strict=True)) if rows else []


def _widths(space: SearchSpace) -> list[Knob]:
    return [knob for knob in space.knobs if knob.kind == "width"]


def _spread(space: SearchSpace, widths: Ladders) -> dict[str, tuple[int, ...]]:
    """With the ladders of depth knobs and of the resolution, in knob order."""
    by_choice = {k.name: k.choices[::-1] for k in space.knobs if k.kind in ("depth", "resolution")}
    found = {knob.name: widths.get(knob.name, by_choice.get(knob.name, ())) for knob in space.knobs}
    return {name: rungs for name, rungs in found.items() if rungs}


def _step_rungs(knob: Knob, step: int, floor: float) -> tuple[int, ...]:
    least = round(floor * knob.largest, 9)
    lower = [choice for choice in knob.choices[:-1] if choice % step == 0 and choice >= least]
    return (knob.largest, *reversed(lower))


def _group_rungs(space: SearchSpace, knob: Knob, groups: int, floor: float) -> tuple[int, ...]:
    if _fits(knob, groups, floor):
        return _parts(knob, groups, floor)
    if knob.largest % groups:
        problem = f"the {knob.largest} channels of {knob.name!r} do not"
    else:
        rungs = _parts(knob, groups, floor)
        offered = ", ".join(map(str, knob.choices))
        missing = ", ".join(str(rung) for rung in reversed(rungs) if rung not in knob.choices)
        problem = (
            f"{knob.name!r} offers the widths {offered}, not {missing}: convert the network with "
            f"ElasticSettings(groups_per_layer={groups}, min_share={floor or 1 / groups:.4g})"
        )
    counts = list(range(2, MOST_GROUPS_TRIED + 1))
    if floor:  # one group must stay, and one be dropped
        counts = [count for count in counts if 1 <= round(floor * count, 9) <= count - 1]
    fitting = [str(c) for c in counts if all(_fits(other, c, floor) for other in _widths(space))]
    cure = f"groups={' or '.join(fitting[:6])} fits every layer" if fitting else "or give step= instead"
    raise InvalidInput(f"every layer must fall into {groups} equal groups, but {problem}; {cure}")


def _fits(knob: Knob, groups: int, floor: float) -> bool:
    if len(knob.choices) == 1:  # it stays as it is
        return True
    return knob.largest % groups == 0 and set(_parts(knob, groups, floor)) <= set(knob.choices)


def _parts(knob: Knob, groups: int, floor: float) -> tuple[int, ...]:
    """All groups, one less, and so on down to the floor, or else to the knob's smallest choice, in channels."""
    if len(knob.choices) == 1:
        return knob.choices
    widths = [knob.largest * part // groups for part in range(groups, 0, -1)]
    least = round(floor * knob.largest, 9) if floor else min(knob.smallest, widths[1])
    return tuple(width for width in widths if width >= least)
