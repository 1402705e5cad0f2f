"""Which knobs a converted network has: widths to choose from, ties, and the space they span."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from torch import nn

from search_spaces import RESOLUTION_KNOB, InvalidInput, Knob, SearchSpace
from subnet_search.elastic.flow import Flow, matches
from subnet_search.elastic.groups import Group, Grouping
from subnet_search.elastic.operations.label_flow import LabelFlow
from subnet_search.settings import ElasticSettings

T = TypeVar("T")
USUAL_STEP, NARROW_STEP, NARROW = 8, 4, 32  # channels; layers narrower than the last take the smaller step


class EmptySpaceError(InvalidInput):
    """Nothing in the model can be made elastic."""


def width_choices(
    units: int, unit_channels: int, settings: ElasticSettings, writers: Sequence[str] = ()
) -> tuple[int, ...]:
    """The widths a group offers, in channels of its first writer, ascending; the last is the full width.

    Multiples of `step` channels (of whole units) from `min_share` upwards; with `groups_per_layer` G, the G
    multiples of a G-th instead. `steps` and `min_shares` of the settings hold for groups with such a writer.
    """
    if not settings.width:
        return (units * unit_channels,)
    step = _last_matching(settings.steps, writers)
    min_share = _last_matching(settings.min_shares, writers) or settings.min_share
    if step is not None:
        settings = settings.model_copy(update={"step": step, "groups_per_layer": None})
    if settings.groups_per_layer:
        parts = settings.groups_per_layer
        chosen = {max(1, round(units * part / parts)) for part in range(1, parts + 1)}
        smallest = min_share * units
        chosen = {c for c in chosen if c >= smallest} | {units}
    else:
        step = max(1, round(_step(settings, units * unit_channels) / unit_channels))
        first = max(step, -(-int(np.ceil(min_share * units)) // step) * step)
        chosen = {*range(first, units, step), units}
    return tuple(c * unit_channels for c in sorted(chosen))


def why_whole(units: int, unit_channels: int, settings: ElasticSettings, writers: Sequence[str] = ()) -> str:
    """Why `width_choices` of the same arguments offers one width alone, and which smaller step would offer more."""
    reason = f"no smaller width: {units} unit(s) of {unit_channels} channel(s)"
    usual = 1 if settings.groups_per_layer else _step(settings, units * unit_channels)
    step = _last_matching(settings.steps, writers) or usual
    finer = settings.model_copy(update={"steps": {}, "groups_per_layer": None})
    while settings.width and step > 1:
        step //= 2
        widths = width_choices(units, unit_channels, finer.model_copy(update={"step": step}), writers)
        if len(widths) > 1:
            return f"{reason}; a step of {step} would offer {', '.join(map(str, widths[:-1]))}"
    return reason


def _step(settings: ElasticSettings, channels: int) -> int:
    """The step for a layer of so many channels, where no pattern says otherwise."""
    return settings.step or (NARROW_STEP if channels < NARROW else USUAL_STEP)


def _last_matching(told: Mapping[str, T], writers: Sequence[str]) -> T | None:
    """What the last pattern that names one of the writers says."""
    found = [value for pattern, value in told.items() if any(matches(path, (pattern,)) for path in writers)]
    return found[-1] if found else None


def rules_of(settings: ElasticSettings, writers: Sequence[str]) -> list[str]:
    """The user's rules that hold for a group with these writers, as people read them."""
    told: list[tuple[str, Mapping[str, object]]] = [
        ("step", settings.steps),
        ("min_share", settings.min_shares),
    ]
    rules = [
        f"{name} {value} ({pattern})"
        for name, table in told
        for pattern, value in table.items()
        if any(matches(path, (pattern,)) for path in writers)
    ]
    tied = [patterns for patterns in settings.tie if any(matches(path, patterns) for path in writers)]
    return [*rules, *(f"tied ({', '.join(patterns)})" for patterns in tied)]


def tie_groups(groups: Mapping[str, Group], ties: Sequence[Sequence[str]]) -> dict[str, str]:
    """The knob of every group: its own name, or that of the first group it is tied to."""
    knob_of = {name: name for name in groups}
    for patterns in ties:
        tied = [name for name in groups if matches(name, patterns)]
        if len(tied) < 2:
            raise InvalidInput(
                f"tie={tuple(patterns)} must name at least two width groups, found {tied}; "
                f"groups are {', '.join(groups)}"
            )
        first, merged = groups[tied[0]], {knob_of[name] for name in tied}
        for name in tied[1:]:
            if (groups[name].choices, groups[name].units) != (first.choices, first.units):
                raise InvalidInput(
                    f"tied groups must offer the same widths: {first.name} has {first.choices}, "
                    f"{name} has {groups[name].choices}; tie groups of one size"
                )
        knob = next(name for name in groups if name in merged)
        knob_of = {name: knob if own in merged else own for name, own in knob_of.items()}
    return knob_of


def span_space(
    grouping: Grouping,
    knob_of: Mapping[str, str],
    blocks: tuple[str, ...],
    model: nn.Module,
    heights: tuple[int, ...] = (),
) -> SearchSpace:
    """The space of all widths and depths; a knob is inactive while every place where it acts is skipped.

    Args:
        grouping: the width groups.
        knob_of: the knob of each.
        blocks: that may be skipped.
        model: for messages.
        heights: of images, in pixels, ascending; the first knob where there is a choice.

    Raises:
        EmptySpaceError: there is no knob.
        InvalidInput: two of them have one name.
    """
    knobs = [Knob(RESOLUTION_KNOB, heights, "resolution")] if heights else []
    knobs += [
        Knob(name, group.choices, "width") for name, group in grouping.groups.items() if knob_of[name] == name
    ]
    knobs += [Knob(block, (0, 1), "depth") for block in blocks]
    names = [knob.name for knob in knobs]
    if not knobs:
        reasons = sorted(set(_reasons(grouping.flow).values()))
        raise EmptySpaceError(
            f"nothing in {type(model).__name__} can be made elastic, so there is no sub-net to search: "
            + ("; ".join(reasons[:8]) or "it has no convolution and no linear layer")
        )
    clash = {name for name in names if names.count(name) > 1}
    if clash:
        raise InvalidInput(
            f"width groups, blocks and the resolution need different names, but share {sorted(clash)}; rename the "
            "module"
        )
    inactive: dict[str, set[tuple[str, ...]] | None] = defaultdict(set)
    for group, knob in knob_of.items():
        for path in (*grouping.groups[group].writers, *grouping.groups[group].readers):
            for node in grouping.flow.nodes.get(path, ()):
                around = tuple(p for p in node.meta["scope"] if p in blocks)
                conditions = inactive[knob]
                if not around:
                    inactive[knob] = None
                elif conditions is not None:
                    conditions.add(around)
    for block in blocks:
        around = tuple(p for p in blocks if block.startswith(f"{p}."))
        if around:
            inactive[block] = {around}
    return SearchSpace(tuple(knobs), {k: tuple(sorted(c)) for k, c in inactive.items() if c})


def _reasons(flow: Flow | LabelFlow) -> dict[str, str]:
    found = {path: flow.channels.reason(int(ids[0])) for path, ids in flow.writes.items()}
    return {path: reason for path, reason in found.items() if reason}
