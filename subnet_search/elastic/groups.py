"""Compiles coupled channels into groups, and for every layer the map from positions to groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from subnet_search.elastic.flow import Flow
from subnet_search.elastic.operations.arrangement import arrangements
from subnet_search.elastic.operations.label_flow import LabelFlow

Kept = slice | Tensor | None  # which positions of an axis a sub-net keeps; None keeps all


@dataclass(frozen=True)
class Group:
    """Channels that one width knob governs.

    A unit is what is kept or dropped as a whole: one channel mostly, several where a grouped convolution
    binds them. Sub-nets keep the first units, so ranking is a matter of order.
    """

    name: str  # dotted path of the first writer
    units: int
    unit_channels: int  # channels of the first writer in one unit
    choices: tuple[int, ...]  # widths of the first writer, ascending
    writers: tuple[str, ...]
    readers: tuple[str, ...]

    @property
    def size(self) -> int:
        """Channels of the first writer."""
        return self.units * self.unit_channels


@dataclass(frozen=True, eq=False)
class ChannelMap:
    """Which unit of which group stands at each position of a layer's input or output.

    The compiled form of DESIGN's segments (group, offset, repeat): one array handles slices, concatenation,
    flattening and shuffling alike.
    """

    groups: tuple[str, ...]
    group_at: np.ndarray  # int64 [size], index into groups; len(groups) where the position is fixed
    unit_at: np.ndarray  # int64 [size]
    _cache: dict[tuple[int | bytes, ...], Kept] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Positions of the full net."""
        return len(self.unit_at)

    def kept(self, units: Mapping[str, int | np.ndarray]) -> Kept:
        """The positions that stay when each group keeps its first `units[group]` units, or those that are true."""
        wanted = tuple(u if isinstance(u := units[name], int) else u.tobytes() for name in self.groups)
        if wanted not in self._cache:
            index = np.flatnonzero(self.mask(units))
            contiguous = len(index) > 0 and index[-1] == len(index) - 1
            whole = len(index) == self.size
            self._cache[wanted] = (
                None if whole else slice(0, len(index)) if contiguous else torch.from_numpy(index)
            )
        return self._cache[wanted]

    def mask(self, units: Mapping[str, int | np.ndarray]) -> np.ndarray:
        """For every position whether it stays, bool `[size]`."""
        some = {i: u for i, name in enumerate(self.groups) if isinstance(u := units[name], np.ndarray)}
        most = np.iinfo(np.int64).max
        limits = np.array([*(most if i in some else units[n] for i, n in enumerate(self.groups)), most])
        mask: np.ndarray = self.unit_at < limits[self.group_at]
        for i, marks in some.items():
            mine = self.group_at == i
            mask[mine] = marks[self.unit_at[mine]]
        return mask

    def positions_per_unit(self) -> dict[str, int]:
        """How many positions one unit of each group fills."""
        return {
            name: int(np.count_nonzero((self.group_at == g) & (self.unit_at == 0)))
            for g, name in enumerate(self.groups)
        }

    def fixed_positions(self) -> int:
        """How many positions every sub-net keeps."""
        return int(np.count_nonzero(self.group_at == len(self.groups)))

    def permutation(self, orders: Mapping[str, np.ndarray]) -> np.ndarray:
        """Which old position moves to each position when group g's unit i becomes old unit orders[g][i].

        Raises no error for groups without an order: they stay as they are.
        """
        result = np.arange(self.size)
        for g, name in enumerate(self.groups):
            if name in orders:
                positions = np.flatnonzero(self.group_at == g)
                by_unit = positions[np.argsort(self.unit_at[positions], kind="stable")]
                by_unit = by_unit.reshape(len(orders[name]), -1)  # [units, positions per unit]
                result[by_unit] = by_unit[orders[name]]
        return result

    def sum_per_unit(self, group: str, values: np.ndarray, units: int) -> np.ndarray:
        """Adds up values `[size]` over the positions of each unit of one group, `[units]`."""
        mine = self.group_at == self.groups.index(group)
        return np.bincount(self.unit_at[mine], weights=values[mine], minlength=units)


@dataclass(frozen=True)
class Site:
    """A layer with the maps of the channels it reads and writes (None where it has no such side)."""

    path: str
    reads: ChannelMap | None
    writes: ChannelMap | None


@dataclass(frozen=True)
class Grouping:
    """All groups by name in forward order, and the layers that touch them by path."""

    flow: Flow | LabelFlow
    groups: Mapping[str, Group]
    place: Mapping[int, tuple[str, int]]  # representative of a channel class -> (group, unit)

    @cached_property
    def sites(self) -> dict[str, Site]:
        """Every layer that a rule gave channels to read or write, in forward order."""
        nodes = enumerate(self.flow.traced.graph.nodes)
        order = {str(node.target): i for i, node in nodes if node.op == "call_module"}
        paths = {*self.flow.writes, *self.flow.reads} & set(order)
        return {
            path: Site(path, self._map(self.flow.reads.get(path)), self._map(self.flow.writes.get(path)))
            for path in sorted(paths, key=lambda p: order[p])
        }

    @cached_property
    def parameters(self) -> dict[str, dict[int, ChannelMap]]:
        """The parameters that belong to no layer of ours: the maps of their elastic axes, by name."""
        if isinstance(self.flow, Flow):
            return {}
        found: dict[str, dict[int, ChannelMap]] = {}
        for name, factors in self.flow.parameters.items():
            maps = {f.shape.index(max(f.shape)): self.channel_map(f.flatten().numpy()) for f in factors}
            found[name] = {axis: m for axis, m in maps.items() if m.groups}
        return found

    def _map(self, ids: np.ndarray | None) -> ChannelMap | None:
        return None if ids is None else self.channel_map(ids)

    def channel_map(self, ids: np.ndarray) -> ChannelMap:
        """The map of an axis whose positions carry these channels."""
        places = [self.place.get(root) for root in self.flow.channels.roots(ids).tolist()]
        groups = tuple(dict.fromkeys(p[0] for p in places if p))
        index = {name: g for g, name in enumerate(groups)}
        return ChannelMap(
            groups,
            np.array([index[p[0]] if p else len(groups) for p in places]),
            np.array([p[1] if p else 0 for p in places]),
        )


def compile_groups(
    flow: Flow | LabelFlow,
    choices: Callable[[int, int, Sequence[str]], tuple[int, ...]],
    whole: Callable[[int, int, Sequence[str]], str],
) -> Grouping:
    """Gathers coupled channels into groups.

    Args:
        flow: the channels that layers read and write.
        choices: from (units, channels of one unit, writers) to the widths to choose from; a group with a single
            choice is no group, its channels are fixed.
        whole: from the same to the reason why there is a single choice.
    """
    roots = {
        (side, path): flow.channels.roots(ids)
        for side, table in (("w", flow.writes), ("r", flow.reads))
        for path, ids in table.items()
    }
    if not isinstance(flow, Flow):
        roots |= {
            ("p", f"{name}[{axis}]"): flow.channels.roots(f.flatten().numpy())
            for name, factors in flow.parameters.items()
            for axis, f in enumerate(factors)
        }
    members = _classes_by_signature(flow, roots)
    groups: dict[str, Group] = {}
    place: dict[int, tuple[str, int]] = {}  # root -> (group, unit)
    for signature, classes in members.items():
        (_, first), per_unit = signature[0]
        name = first if first not in groups else f"{first}[{sum(g.split('[')[0] == first for g in groups)}]"
        paths = {side: tuple(p for (s, p), _ in signature if s == side) for side in "wr"}
        widths = choices(len(classes), per_unit, paths["w"])
        if len(widths) < 2:
            flow.channels.freeze(np.array(list(classes)), whole(len(classes), per_unit, paths["w"]))
            continue
        paths["r"] += tuple(dict.fromkeys(p.partition("[")[0] for (s, p), _ in signature if s == "p"))
        groups[name] = Group(name, len(classes), per_unit, widths, paths["w"], paths["r"])
        place.update({root: (name, unit) for unit, root in enumerate(classes)})
    return Grouping(flow, groups, place)


_Signature = tuple[
    tuple[tuple[str, str], int], ...
]  # ((side, path), positions) of every tensor it is in, and moves


def _classes_by_signature(
    flow: Flow | LabelFlow, roots: Mapping[tuple[str, str], np.ndarray]
) -> dict[_Signature, dict[int, None]]:
    """Elastic classes that fill the same places alike and are moved alike, so that any order of them is as good."""
    occurrences: dict[int, dict[tuple[str, str], int]] = defaultdict(dict)
    for where, array in roots.items():  # writers come first, in forward order
        for root, count in zip(*np.unique(array, return_counts=True), strict=True):
            occurrences[int(root)][where] = int(count)
    if not isinstance(flow, Flow):
        for operator, numbers in arrangements(flow):
            for root, number in numbers.items():
                occurrences[root]["moved", operator] = number
    members: dict[_Signature, dict[int, None]] = defaultdict(dict)
    for (side, _), array in roots.items():
        if side == "w":
            for root in dict.fromkeys(array.tolist()):
                if flow.channels.reason(root) is None:
                    members[tuple(occurrences[root].items())][root] = None
    return members
