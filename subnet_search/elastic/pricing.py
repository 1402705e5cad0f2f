"""Turns a traced graph into closed-form costs."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import fx, nn

from search_spaces import CostTable, SearchSpace
from subnet_search.elastic.flow import Flow
from subnet_search.elastic.graph import enclosing, home_paths
from subnet_search.elastic.groups import ChannelMap, Grouping
from subnet_search.elastic.operations.exported import Exported, aten
from subnet_search.elastic.operations.label_flow import LabelFlow, arguments
from subnet_search.elastic.operations.products import other_macs, products
from subnet_search.elastic.padding import PaddedShortcut

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
    def flow(self) -> Flow | LabelFlow:
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
                is_graph = isinstance(self.flow.traced, Exported)
                terms = {(): other_macs(node) if is_graph else node.meta["macs"]}
            result[node] = times(terms, self._guard(node.meta["scope"]))
        return result

    def _formula(self, node: fx.Node) -> Terms | None:
        if node.op == "call_function" and (product := products(node)):
            return self._of_products(product)
        site = self.grouping.sites.get(str(node.target)) if node.op == "call_module" else None
        if site is None or site.reads is None or site.writes is None:
            return self._fixed_formula(node)
        layer: Any = self.flow.module(node)
        outputs, inputs = self.width(site.writes), self.width(site.reads)
        shape = self.flow.shape(node)
        if isinstance(layer, nn.Linear):
            return functools.reduce(
                times, (self.axis(node, a) for a in range(len(shape) - 1)), times(outputs, inputs)
            )
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
        homes = home_paths(self.flow.traced.model)
        traced = self.flow.traced
        for names, parameter in _parameters(traced.model):
            path, _, leaf = names[0].rpartition(".")
            if isinstance(traced, Exported):
                guards = [
                    self._guard(n.meta["scope"]) for name in names for n in traced.readers.get(name, ())
                ]
            else:
                guards = [self._guard(homes[p] for p in enclosing(name.rpartition(".")[0])) for name in names]
            if not guards:
                continue  # an extracted sub-net goes without it
            fewest = min(guards, key=len)  # it stays while one of its names or readers does
            guard = fewest if all(set(fewest) <= set(g) for g in guards) else ()
            terms = times(self._parameter(path, leaf, tuple(parameter.shape)), guard)
            count.append(terms)
            weights.append(scaled(terms, parameter.element_size()))
        return add(count), add(weights)

    def _of_products(self, found: Sequence[Sequence[tuple[fx.Node, int, int]]]) -> Terms:
        """Multiply-adds of products of tensors: the sizes of all their letters multiplied."""
        terms: list[Terms] = []
        for letters in found:
            one: Terms = {(): 1}
            for node, axis, share in letters:
                width = self.axis(node, axis)
                one = scaled(one, node.meta["shape"][axis] // share) if share > 1 else times(one, width)
            terms.append(one)
        return add(terms)

    def axis(self, node: fx.Node, axis: int) -> Terms:
        """How many positions of a tensor's axis a sub-net keeps."""
        axis %= len(node.meta["shape"])
        for one, ids in self.flow.axes(node):
            if one == axis:
                return self.width(self.grouping.channel_map(ids))
        return {(): node.meta["shape"][axis]}

    def _parameter(self, path: str, leaf: str, shape: tuple[int, ...]) -> Terms:
        maps = self.grouping.parameters.get(f"{path}.{leaf}" if path else leaf)
        if maps is not None:
            terms: Terms = {(): 1}
            for axis, size in enumerate(shape):
                terms = times(terms, self.width(maps[axis]) if axis in maps else {(): size})
            return terms
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
        memory = _memory(nodes, self._copies)
        last_use = {memory[n]: i for i, node in enumerate(nodes) for n in _touched(node) if n in memory}
        size = {owner: self._bytes(owner) for owner in set(memory.values())}
        handed_on = [
            _HandedOn(memory[call.output], memory[call.inputs[0]], call.path)
            for call in self.flow.traced.calls
            if call.path in self.blocks and call.output is not None
        ]
        alive: list[fx.Node] = []
        steps: list[Terms] = []
        for i, node in enumerate(nodes):
            if node in memory and memory[node] is node:
                alive.append(node)
            scope = node.meta["scope"]
            links = [link for link in handed_on if link.block not in scope and link.given is not link.made]
            needed: list[Terms] = [{}]
            for position, owner in enumerate(alive):
                kept = _separate(owner, alive[:position], links)
                needed = [add([terms, times(size[owner], blocks)]) for terms in needed for blocks in kept]
            steps += [times(terms, self._guard(scope)) for terms in needed]
            alive = [owner for owner in alive if last_use[owner] > i]
        return tuple(_undominated(steps))

    def _copies(self, node: fx.Node) -> bool:
        """Whether a sub-net copies what the model only looks at: every so-manieth of its channels."""
        if node.target is not aten.slice.Tensor:
            return False
        given = arguments(node)
        return given["step"] != 1 and any(self.axis(given["self"], given["dim"]))  # a monomial names a knob

    def _bytes(self, node: fx.Node) -> Terms:
        terms: Terms = {(): BYTES_PER_ACTIVATION}
        elastic = dict(self.flow.axes(node))
        for axis, size in enumerate(self.flow.shape(node)):
            width: Terms = {(): size}
            if axis in elastic:
                width = self.width(self.grouping.channel_map(elastic[axis]))
            terms = times(terms, width)
        return terms


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


class _HandedOn(NamedTuple):
    """A skipped block hands on its input: what it makes is then the memory it was given, no second tensor."""

    made: fx.Node
    given: fx.Node
    block: str


def _separate(owner: fx.Node, others: Sequence[fx.Node], links: Sequence[_HandedOn]) -> list[tuple[str, ...]]:
    """When a tensor has memory of its own beside the others.

    Returns:
        Sets of blocks: it is so exactly if all blocks of some set are kept. The tensor is another one's
        memory if every block on a way between the two is skipped.
    """
    ways = [frozenset(way) for other in others for way in _ways(owner, other, links)]
    ways = [way for way in dict.fromkeys(ways) if not any(shorter < way for shorter in ways)]
    return list(dict.fromkeys(tuple(sorted(set(chosen))) for chosen in itertools.product(*map(sorted, ways))))


def _ways(start: fx.Node, goal: fx.Node, links: Sequence[_HandedOn]) -> Iterator[tuple[str, ...]]:
    """The blocks along every way from one tensor to another."""
    for link in links:
        if start in (link.made, link.given):
            there = link.given if start is link.made else link.made
            if there is goal:
                yield (link.block,)
            else:
                for way in _ways(there, goal, [other for other in links if other is not link]):
                    yield (link.block, *way)


def _memory(nodes: Sequence[fx.Node], copies: Callable[[fx.Node], bool]) -> dict[fx.Node, fx.Node]:
    """The node whose memory each tensor lives in: itself, or the one it is a view or overwrite of."""
    found: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        memory = node.meta["memory"]
        if memory is not None:
            same = (n for n in _tensors_into(node) if n.meta["memory"] == memory)
            first = None if copies(node) else next(same, None)
            found[node] = node if first is None else found[first]
    return found


def _tensors_into(node: fx.Node) -> Iterator[fx.Node]:
    """The tensors that an operation is given, also those that come in a list."""
    for given in node.all_input_nodes:
        if given.meta["shape"] is None:
            yield from _tensors_into(given)
        else:
            yield given


def _touched(node: fx.Node) -> tuple[fx.Node, ...]:
    return (node, *node.all_input_nodes)


def _parameters(model: nn.Module) -> list[tuple[list[str], nn.Parameter]]:
    """Every parameter once, with all names it goes by."""
    names: dict[int, tuple[list[str], nn.Parameter]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), ([], parameter))[0].append(name)
    return list(names.values())
