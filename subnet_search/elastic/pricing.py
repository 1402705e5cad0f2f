"""Turns a traced graph into closed-form costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from search_spaces import CostTable, SearchSpace
from subnet_search.elastic.flow import Flow
from subnet_search.elastic.groups import ChannelMap, Grouping
from subnet_search.elastic.padding import PaddedShortcut
from subnet_search.elastic.rules import ACTIVATIONS, DROPOUTS, IDENTITY_FUNCTIONS, function_key

Terms = dict[tuple[str, ...], int]  # monomial (sorted knob names) -> coefficient

BYTES_PER_ACTIVATION = 4  # fp32


@dataclass(frozen=True)
class Pricing:
    """Costs of one conversion: what every layer adds, as polynomials in the knobs.

    Widths enter in units, depth as 0 or 1: an operation in a skippable block is multiplied by the block's
    knob. Multiply-adds are those of convolutions and linear layers by formula, and whatever other operators
    were seen to make (they touch no elastic channel, so that is a constant).
    """

    grouping: Grouping
    knob_of: Mapping[str, str]  # group -> knob; a group without one keeps its width
    blocks: Sequence[str]

    @property
    def flow(self) -> Flow:
        """The channels this is about."""
        return self.grouping.flow

    def table(self, space: SearchSpace) -> CostTable:
        """The cost table over the knobs of `space`."""
        groups = self.grouping.groups
        divisors = {knob: groups[name].unit_channels for name, knob in self.knob_of.items()}
        names = tuple(knob.name for knob in space.knobs)
        params, weight_bytes = self.params()
        return CostTable(
            knobs=names,
            divisors=tuple(divisors.get(name, 1) for name in names),
            macs_terms=add(self.node_macs().values()),
            params_terms=params,
            weight_bytes_terms=weight_bytes,
            peak_activation_bytes_terms=self.peak_steps(),
        )

    def node_macs(self) -> dict[fx.Node, Terms]:
        """Multiply-adds of every operation."""
        result: dict[fx.Node, Terms] = {}
        for node in self.flow.traced.graph.nodes:
            terms = self._formula(node)
            if terms is None:
                terms = {(): node.meta["macs"]}
            result[node] = times(terms, self._guard(node.meta["scope"]))
        return result

    def _formula(self, node: fx.Node) -> Terms | None:
        site = self.grouping.sites.get(str(node.target)) if node.op == "call_module" else None
        if site is None or site.reads is None or site.writes is None:
            return self._fixed_formula(node)
        layer: Any = self.flow.module(node)
        outputs, inputs = self.width(site.writes), self.width(site.reads)
        shape = self.flow.shape(node)
        if isinstance(layer, nn.Linear):
            return scaled(times(outputs, inputs), math.prod(shape[:-1]))
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            per_position = math.prod(layer.kernel_size) * math.prod(shape[2:]) * shape[0]
            if layer.groups > 1:
                return scaled(outputs, per_position * layer.in_channels // layer.groups)
            return scaled(times(outputs, inputs), per_position)
        return {}

    def _fixed_formula(self, node: fx.Node) -> Terms | None:
        """Convolutions and linear layers that the rules never reached."""
        layer: Any = self.flow.module(node) if node.op == "call_module" else None
        shape = node.meta["shape"]
        if isinstance(layer, nn.Linear):
            return {(): layer.in_features * math.prod(shape)}
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            return {(): math.prod(layer.kernel_size) * layer.in_channels // layer.groups * math.prod(shape)}
        return None

    def params(self) -> tuple[Terms, Terms]:
        """Number and bytes of the parameters."""
        count: list[Terms] = []
        weights: list[Terms] = []
        for names, parameter in _parameters(self.flow.traced.model):
            path, _, leaf = names[0].rpartition(".")
            guards = [self._guard(_enclosing(name)) for name in names]
            guard = guards[0] if all(g == guards[0] for g in guards) else ()
            terms = times(self._parameter(path, leaf, tuple(parameter.shape)), guard)
            count.append(terms)
            weights.append(scaled(terms, parameter.element_size()))
        return add(count), add(weights)

    def _parameter(self, path: str, leaf: str, shape: tuple[int, ...]) -> Terms:
        site = self.grouping.sites.get(path)
        if site is None or not shape:
            return {(): math.prod(shape)}
        first = site.writes or site.reads
        layer: Any = self.flow.traced.model.get_submodule(path)
        if first is None or isinstance(layer, PaddedShortcut):
            return {(): math.prod(shape)}
        if leaf == "weight" and site.writes and site.reads and getattr(layer, "groups", 1) == 1:
            return scaled(times(self.width(site.writes), self.width(site.reads)), math.prod(shape[2:]))
        return scaled(self.width(first), math.prod(shape[1:]))

    def width(self, channel_map: ChannelMap) -> Terms:
        """How many positions of an axis a sub-net keeps."""
        terms: list[Terms] = [{(): channel_map.fixed_positions()}]
        for name, per_unit in channel_map.positions_per_unit().items():
            terms.append({(self.knob_of[name],): per_unit} if name in self.knob_of else {(): per_unit})
        return add(terms)

    def _guard(self, scope: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(set(scope) & set(self.blocks)))

    def peak_steps(self) -> tuple[Terms, ...]:
        """Bytes of all live tensors at every step of the execution."""
        nodes = list(self.flow.traced.graph.nodes)
        memory = self._memory(nodes)
        last_use = {memory[n]: i for i, node in enumerate(nodes) for n in _touched(node) if n in memory}
        size = {owner: self._bytes(owner) for owner in set(memory.values())}
        made_by = {
            memory[call.output]: call
            for call in self.flow.traced.calls
            if call.path in self.blocks and call.output is not None
        }
        alive: list[Any] = []
        steps: list[Terms] = []
        for i, node in enumerate(nodes):
            if memory.get(node) is node:
                alive.append(node)
            terms = []
            for owner in alive:
                call = made_by.get(owner)
                # A skipped block hands on its input: the same memory, not a second tensor.
                twice = call and call.path not in node.meta["scope"] and memory[call.inputs[0]] in alive
                terms.append(times(size[owner], (call.path,) if call and twice else ()))
            steps.append(times(add(terms), self._guard(node.meta["scope"])))
            alive = [owner for owner in alive if last_use[owner] > i]
        return tuple(_undominated(steps))

    def _memory(self, nodes: Sequence[fx.Node]) -> dict[fx.Node, fx.Node]:
        """The node whose memory each tensor lives in: itself, or the one it is a view or overwrite of."""
        memory: dict[fx.Node, fx.Node] = {}
        for node in nodes:
            if node.meta["shape"] is None or node.op == "get_attr":
                continue
            tensors = [n for n in node.all_input_nodes if n in memory]
            memory[node] = memory[tensors[0]] if tensors and self._reuses(node) else node
        return memory

    def _reuses(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            layer: Any = self.flow.module(node)
            if isinstance(layer, ACTIVATIONS):
                return bool(getattr(layer, "inplace", False))
            return isinstance(layer, (*DROPOUTS, nn.Flatten))
        if node.op == "call_method":
            return str(node.target).endswith("_") or node.target in {
                "view",
                "flatten",
                "reshape",
                "contiguous",
            }
        if node.kwargs.get("inplace"):
            return True
        name = getattr(node.target, "__name__", "")
        views = {"flatten", "reshape", "getitem", "iadd", "imul", "isub", "itruediv"}
        return name in views or function_key(node.target) in IDENTITY_FUNCTIONS

    def _bytes(self, node: fx.Node) -> Terms:
        shape, layout = self.flow.shape(node), self.flow.layouts.get(node)
        if layout is None:
            return {(): math.prod(shape) * BYTES_PER_ACTIVATION}
        others = math.prod(shape) // max(shape[layout.axis], 1)
        return scaled(self.width(self.grouping.channel_map(layout.ids)), others * BYTES_PER_ACTIVATION)


def add(polynomials: Iterable[Terms]) -> Terms:
    """The sum of polynomials, without zero terms."""
    total: Terms = {}
    for terms in polynomials:
        for monomial, coefficient in terms.items():
            total[monomial] = total.get(monomial, 0) + coefficient
    return {monomial: coefficient for monomial, coefficient in total.items() if coefficient}


def scaled(terms: Terms, factor: int) -> Terms:
    """The polynomial times a whole number."""
    return {monomial: coefficient * factor for monomial, coefficient in terms.items()}


def times(terms: Terms, other: Terms | tuple[str, ...]) -> Terms:
    """The product of two polynomials; a tuple of knobs is a monomial."""
    factor = {other: 1} if isinstance(other, tuple) else other
    return add(
        {tuple(sorted((*left, *right))): a * b} for left, a in terms.items() for right, b in factor.items()
    )


def _undominated(steps: Sequence[Terms]) -> list[Terms]:
    """Leaves out steps that never need more than another one, coefficient by coefficient."""
    kept: list[Terms] = []
    for step in sorted(steps, key=lambda t: -sum(t.values())):
        if not any(all(other.get(m, 0) >= c for m, c in step.items()) for other in kept):
            kept.append(step)
    return kept


def _touched(node: fx.Node) -> tuple[fx.Node, ...]:
    return (node, *node.all_input_nodes)


def _enclosing(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _parameters(model: nn.Module) -> list[tuple[list[str], nn.Parameter]]:
    """Every parameter once, with all names it goes by."""
    names: dict[int, tuple[list[str], nn.Parameter]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), ([], parameter))[0].append(name)
    return list(names.values())
