"""What kind of freedom a width group is: heads of attention, the width of an MLP, of a stream, or inside of a block."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from torch import fx, nn

from subnet_search.elastic.flow import Flow
from subnet_search.elastic.groups import Group, Grouping
from subnet_search.elastic.operations.exported import aten
from subnet_search.elastic.rules import ADDITIONS

Freedom = Literal["inner width", "stream width", "heads", "MLP width"]

_PRODUCTS = frozenset({aten.scaled_dot_product_attention, aten.matmul, aten.bmm, aten.einsum, aten.baddbmm})
_MAPS = frozenset({aten.linear, aten.addmm, aten.mm, aten.conv1d, aten.conv2d, aten.conv3d})
_SUMS = ADDITIONS | {aten.add.Tensor, aten.add_.Tensor}
_GATES = frozenset({operator.mul, operator.imul, torch.mul, "mul", "mul_", aten.mul.Tensor, aten.mul_.Tensor})


def freedoms(grouping: Grouping) -> dict[str, Freedom]:
    """The kind of each group, by name.

    Heads: a product of two activations couples its channels. MLP width: one linear layer writes it and one reads it,
    with a residual addition around the two. Stream width: several layers write it, mostly joined by additions; a gate,
    which is multiplied in, does not count. Inner width: all else.
    """
    reading = _Reading(grouping)
    return {name: reading.kind(group) for name, group in grouping.groups.items()}


class _Reading:
    """One look at a graph: which node carries which groups, and where what it carries comes from."""

    def __init__(self, grouping: Grouping) -> None:
        self.grouping, self.flow = grouping, grouping.flow
        self.nodes = list(self.flow.traced.graph.nodes)
        self.active: set[fx.Node] = set()  # depends on the network's input
        self.carried: dict[fx.Node, frozenset[str]] = {}
        for node in self.nodes:
            if node.op == "placeholder" or not self.active.isdisjoint(node.all_input_nodes):
                self.active.add(node)
            self.carried[node] = self._groups_of(node)

    def kind(self, group: Group) -> Freedom:
        met = [self._operands(node, group.name) for node in self.nodes if _packet(node) in _PRODUCTS]
        if any(len(operands) > 1 for operands in met):
            return "heads"
        if not any(met) and self._is_of_mlp(group):
            return "MLP width"
        return "stream width" if self._is_stream(group) else "inner width"

    def _groups_of(self, node: fx.Node) -> frozenset[str]:
        channels, place = self.flow.channels, self.grouping.place
        roots = (r for ids in _ids(self.flow, node) for r in channels.roots(np.unique(ids)).tolist())
        return frozenset(place[r][0] for r in roots if r in place)

    def _operands(self, node: fx.Node, group: str) -> list[fx.Node]:
        """The activations among a node's inputs that carry a group."""
        return [n for n in node.all_input_nodes if n in self.active and group in self.carried[n]]

    # streams

    def _is_stream(self, group: Group) -> bool:
        sources: dict[fx.Node, frozenset[fx.Node]] = {}  # which calls wrote what a node carries
        calls = {call for path in group.writers for call in self.flow.nodes.get(path, ())}
        gates = 0
        for node in self.nodes:
            if group.name not in self.carried[node]:
                continue
            given = [n for n in node.all_input_nodes if n in sources]
            written = node in calls and (node.op == "call_module" or _packet(node) in _MAPS)
            sources[node] = frozenset({node}) if written or not given else _union(sources[n] for n in given)
            operands = [sources[n] for n in self._operands(node, group.name) if n in sources]
            if any(a - b and b - a for a in operands for b in operands):
                if node.target in _SUMS:
                    return True
                gates += node.target in _GATES
        return sum(not self._passes_on(path, group) for path in group.writers) > 1 + gates

    def _passes_on(self, path: str, group: Group) -> bool:
        """Whether a writer only works on what it reads of the group, as a convolution in groups does."""
        calls = self.flow.nodes.get(path, ())
        return path in group.readers and not any(self._is_map(node) for node in calls)

    # MLPs

    def _is_of_mlp(self, group: Group) -> bool:
        readers = [path for path in group.readers if path in self.flow.writes or self._is_weight(path)]
        if len(group.writers) != 1 or len(readers) != 1:
            return False
        first, last = self._only_call(group.writers[0]), self._only_call(readers[0])
        return first is not None and last is not None and self._residual_around(first, last)

    def _only_call(self, path: str) -> fx.Node | None:
        """The call of a linear layer that is called once."""
        calls = self.flow.nodes.get(path, [])
        if len(calls) != 1 or calls[0].op != "call_module":
            return None
        return calls[0] if isinstance(self.flow.module(calls[0]), nn.Linear) else None

    def _is_weight(self, name: str) -> bool:
        """Whether a parameter of no layer is the weight of a linear map or convolution."""
        users = self.flow.nodes.get(name, []) if name not in self.flow.reads else []
        return any(_packet(node) in _MAPS for node in users)

    def _residual_around(self, first: fx.Node, last: fx.Node) -> bool:
        """Whether what `first` reads is added to what `last` writes, with no other layer between."""
        given = self._followed([n for n in first.all_input_nodes if n in self.active], back=True)
        for node in self._followed(list(last.users), back=False):
            if node.target in _SUMS:
                addends = [n for n in node.all_input_nodes if n in self.active]
                if len(addends) > 1 and not given.isdisjoint(self._addends(addends)):
                    return True
        return False

    def _followed(self, begin: Iterable[fx.Node], back: bool) -> set[fx.Node]:
        """What can be reached through operations that are no layer, up to layers and additions."""
        open_nodes, seen = list(begin), set[fx.Node]()
        while open_nodes:
            node = open_nodes.pop()
            if node in seen:
                continue
            seen.add(node)
            if node.target not in _SUMS and not self._is_map(node):
                open_nodes += [n for n in node.all_input_nodes if n in self.active] if back else node.users
        return seen

    def _addends(self, nodes: list[fx.Node]) -> set[fx.Node]:
        """The nodes and, of sums, what is summed."""
        open_nodes, seen = list(nodes), set[fx.Node]()
        while open_nodes:
            node = open_nodes.pop()
            if node not in seen:
                seen.add(node)
                open_nodes += node.all_input_nodes if node.target in _SUMS else []
        return seen

    def _is_map(self, node: fx.Node) -> bool:
        """Whether a node makes new channels; a convolution in groups that stand and fall together does not."""
        if node.op != "call_module":
            return _packet(node) in _MAPS | _PRODUCTS
        path, channels = str(node.target), self.flow.channels
        if path not in self.flow.writes or path not in self.flow.reads:
            return False
        written, read = (set(channels.roots(t[path]).tolist()) for t in (self.flow.writes, self.flow.reads))
        return getattr(self.flow.module(node), "groups", 1) == 1 or written != read


def _ids(flow: Any, node: fx.Node) -> list[np.ndarray]:
    """The channel ids that a node carries, of all its outputs."""
    if isinstance(flow, Flow):
        return [ids for _, ids in flow.axes(node)]
    found = flow.factors.get(node, ())
    outputs = [found] if isinstance(found, tuple) else found
    return [factor.numpy() for factors in outputs for factor in factors]


def _packet(node: fx.Node) -> Any:
    return getattr(node.target, "overloadpacket", None) if node.op == "call_function" else None


def _union(sets: Iterable[frozenset[fx.Node]]) -> frozenset[fx.Node]:
    return frozenset[fx.Node]().union(*sets)
