"""Turns a traced graph into closed-form costs."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from search_spaces import CostTable, SearchSpace
from subnet_search.elastic.custom import Passes, rule_for
from subnet_search.elastic.flow import Flow
from subnet_search.elastic.graph import enclosing, home_paths
from subnet_search.elastic.grouped import makes_thinner
from subnet_search.elastic.groups import ChannelMap, Grouping
from subnet_search.elastic.operations.exported import Exported, aten
from subnet_search.elastic.operations.label_flow import LabelFlow, arguments
from subnet_search.elastic.operations.products import other_macs, products
from subnet_search.elastic.padding import PaddedShortcut
from subnet_search.elastic.peak import HandedMemory, Live, Touch
from subnet_search.elastic.residual import handed_on
from subnet_search.elastic.terms import Terms, add, in_some_case, scaled, times, undominated

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
        if site is not None and site.reads is not None and rule_for(self.flow.module(node)) is not None:
            each, rest = divmod(node.meta["macs"], site.reads.size)
            return None if rest else scaled(self.width(site.reads), each)
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
            return scaled(times(outputs, self._inputs_of_group(layer, inputs)), per_position)
        return {}

    def _fixed_formula(self, node: fx.Node) -> Terms | None:
        """Convolutions and linear layers that the rules never reached."""
        is_layer = node.op == "call_module" and str(node.target) not in self.flow.traced.opaque
        layer: Any = self.flow.module(node) if is_layer else None
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
            cases = tuple(map(frozenset, guards))  # it stays while one of its names or readers does
            terms = in_some_case(self._parameter(path, leaf, tuple(parameter.shape)), cases)
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
        if isinstance(rule := rule_for(layer), Passes):
            if leaf not in rule.parameters:
                return {(): math.prod(shape)}
            return scaled(self.width(first), math.prod(shape) // shape[rule.parameters[leaf]])
        if leaf == "weight" and site.writes and site.reads:
            inputs = self.width(site.reads)
            inputs = self._inputs_of_group(layer, inputs) if hasattr(layer, "groups") else inputs
            return scaled(times(self.width(site.writes), inputs), math.prod(shape[2:]))
        return scaled(self.width(first), math.prod(shape[1:]))

    def _inputs_of_group(self, conv: Any, inputs: Terms) -> Terms:
        """How many inputs one group of a convolution has, where all of them have so many."""
        if not makes_thinner(conv):
            return {(): conv.in_channels // conv.groups}
        return {knobs: channels // conv.groups for knobs, channels in inputs.items()}

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
        traced = self.flow.traced
        nodes = list(traced.graph.nodes)
        memory = _memory(nodes, self._copies)
        live = self._live(nodes, memory)
        alive: list[fx.Node] = []
        steps: list[Terms] = []
        for i, node in enumerate(nodes):
            if node in memory and memory[node] is node:
                alive.append(node)
            steps += live.bytes_at(i, alive, frozenset(self._guard(node.meta["scope"])))
            alive = [owner for owner in alive if live.cases(owner, i + 1)]
        return tuple(undominated(steps))

    def _live(self, nodes: Sequence[fx.Node], memory: Mapping[fx.Node, fx.Node]) -> Live:
        """What is known of the memory of all nodes; `memory` says which tensor's each one is."""
        links = [
            HandedMemory(memory[made], memory.get(given, given), path)
            for path, handed in handed_on(self.flow.traced, self.blocks).items()
            for made, given in zip(handed.outputs, handed.inputs, strict=True)
        ]
        sizes: dict[fx.Node, Terms] = {link.given: {} for link in links}  # of what lives in weights
        sizes |= {owner: self._bytes(owner) for owner in set(memory.values())}
        touches: dict[fx.Node, list[Touch]] = defaultdict(list)
        inside: dict[str, list[int]] = defaultdict(list)
        for i, node in enumerate(nodes):
            guard = frozenset(self._guard(node.meta["scope"]))
            for block in guard:
                inside[block].append(i)
            for owner in {memory[n]: None for n in (node, *node.all_input_nodes) if n in memory}:
                touches[owner].append(Touch(i, guard))
        return Live(sizes, touches, {path: (steps[0], steps[-1]) for path, steps in inside.items()}, links)

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


def _parameters(model: nn.Module) -> list[tuple[list[str], nn.Parameter]]:
    """Every parameter once, with all names it goes by."""
    names: dict[int, tuple[list[str], nn.Parameter]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), ([], parameter))[0].append(name)
    return list(names.values())
