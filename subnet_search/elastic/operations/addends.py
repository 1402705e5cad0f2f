"""Which input of a block reaches an output through additions, and through moves that cancel.

A number is written on every element of the input, and the operations that only move elements are run on these numbers.
An addition hands them on. If in the end the number of every place is its own, every element of the input is an addend
of the same element of the output.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from subnet_search.elastic.operations.exported import Exported, aten
from subnet_search.elastic.operations.label_flow import arguments
from subnet_search.elastic.operations.operators import EXPANSIONS, MOVES, RESHAPES

NOTHING, SEVERAL = -1, -2  # instead of a number: no element of the input, or two different ones


def _packets(*names: str) -> frozenset[Any]:
    return frozenset(getattr(aten, name) for name in names if hasattr(aten, name))


_ADDITIONS = _packets("add", "add_")
_IDENTITIES = _packets(
    "dropout", "dropout_", "feature_dropout", "feature_dropout_", "alpha_dropout", "alias", "contiguous", "clone",
    "detach", "to", "_to_copy", "type_as",
)  # fmt: skip
_ACTIVATIONS = _packets(
    *(f"{name}{ending}" for ending in ("", "_") for name in (
        "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardsigmoid",
        "hardtanh", "sigmoid", "tanh", "softplus", "softsign", "log_sigmoid",
    ))
)  # fmt: skip
_RESHAPES, _EXPANSIONS = _packets(*RESHAPES), _packets(*EXPANSIONS)
_FLOATING = ("im2col", "pixel_shuffle", "pixel_unshuffle")  # they refuse whole numbers
_MOVES = _packets("roll", *(name for name in MOVES if name not in _FLOATING))
_JOINS = _packets("cat", "stack")
_PADS = _packets("pad", "constant_pad_nd")
_PASSING = frozenset().union(
    _ADDITIONS, _IDENTITIES, _ACTIVATIONS, _RESHAPES, _EXPANSIONS, _MOVES, _JOINS, _PADS, {aten.index}
)


def addends(
    traced: Exported, nodes: Sequence[fx.Node], output: fx.Node, inputs: Sequence[fx.Node]
) -> list[fx.Node]:
    """The inputs of a block that an output of it is the sum of, with something else, element by element.

    An activation may follow the last addition.

    Args:
        traced: the graph.
        nodes: the block's operations, in order.
        output: one of them.
        inputs: of the block.
    """
    way = _way_back(output, set(nodes))
    alike = (n for n in inputs if n in way and n.op != "get_attr" and _kind(n) == _kind(output))
    return [source for source in alike if _Carried(traced, source).arrives(output, nodes, way)]


def _kind(node: fx.Node) -> tuple[Any, ...]:
    return node.meta["shape"], node.meta["per_row"], node.meta.get("dtype")


def _way_back(output: fx.Node, inside: set[fx.Node]) -> set[fx.Node]:
    """What the output is made of, back to the inputs, by operations that pass elements on."""
    open_nodes, seen = [output], set[fx.Node]()
    while open_nodes:
        node = open_nodes.pop()
        if node not in seen:
            seen.add(node)
            if node in inside and _hands_on(node):
                open_nodes += node.all_input_nodes
    return seen


def _packet(node: fx.Node) -> Any:
    return getattr(node.target, "overloadpacket", None) if node.op == "call_function" else None


def _hands_on(node: fx.Node) -> bool:
    """Whether an operation may hand on elements of what it is given; one of a list's tensors is picked by getitem."""
    return _packet(node) in _PASSING or node.target is operator.getitem


class _Numbered(NamedTuple):
    """The numbers on a tensor's elements, at two rows."""

    numbers: Any  # of shape of the tensor; a list of them for a list of tensors
    added: bool = False
    final: bool = False  # an activation came: after it nothing may be added


class _Carried:
    """The numbers of one input, wherever they are carried to."""

    def __init__(self, traced: Exported, source: fx.Node) -> None:
        self.traced, self.source = traced, source
        shape = _shape(source)
        numbers = torch.arange(shape.numel(), dtype=torch.int32).reshape(shape)
        self.own, self.found = numbers, {source: _Numbered(numbers)}

    def arrives(self, output: fx.Node, nodes: Sequence[fx.Node], way: set[fx.Node]) -> bool:
        """Whether every element of the source is an addend of the same element of the output."""
        for node in nodes:
            passed = self._passed(node) if node in way and _hands_on(node) else None
            if _overwrites(node):
                self._forget(node.args[0])
            if passed is not None:
                self.found[node] = passed
        found = self.found.get(output)
        return found is not None and found.added and torch.equal(found.numbers, self.own)

    def _forget(self, overwritten: Any) -> None:
        """What lives in memory that is overwritten is no longer what it was."""
        memory = overwritten.meta["memory"]
        for node in [n for n in self.found if n.meta["memory"] == memory]:
            del self.found[node]

    def _passed(self, node: fx.Node) -> _Numbered | None:
        """The numbers on what an operation makes, if there are any."""
        given = [self.found[n] for n in node.all_input_nodes if n in self.found]
        if not given:
            return None
        first, packet = given[0], _packet(node)
        if packet in _ADDITIONS:
            return self._added(node)
        if packet in _IDENTITIES:
            return first if node.meta["dtype"] == self.source.meta["dtype"] else None
        if packet in _ACTIVATIONS:
            return first._replace(final=True) if first.added else None
        numbers = self._moved(node, first)
        if numbers is None or (isinstance(numbers, Tensor) and numbers.shape != _shape(node)):
            return None
        return _Numbered(numbers, any(g.added for g in given), any(g.final for g in given))

    def _added(self, node: fx.Node) -> _Numbered | None:
        terms = arguments(node)
        found = [self.found[n] for n in (terms["self"], terms["other"]) if n in self.found]
        if any(one.final for one in found) or terms.get("alpha", 1) != 1:
            return None
        numbers = [one.numbers.expand(_shape(node)) for one in found]
        return _Numbered(numbers[0] if len(numbers) == 1 else _joined(*numbers), added=True)

    def _moved(self, node: fx.Node, first: _Numbered) -> Any:
        """The numbers after an operation that only moves elements."""
        packet, numbers = _packet(node), first.numbers
        if packet in _RESHAPES:
            return numbers.reshape(_shape(node))
        if packet in _EXPANSIONS:
            return numbers.expand(_shape(node))
        others = [n for n in node.all_input_nodes if n not in self.found and n.meta["number"] is None]
        if packet in _JOINS:
            values = {n: torch.full(_shape(n), NOTHING, dtype=torch.int32) for n in others}
        elif all(self.traced.is_constant(n) for n in others):
            values = {n: self.traced.value(n) for n in others}
        else:
            return None
        if packet in _PADS:
            given = arguments(node)
            is_constant = given.get("mode", "constant") == "constant"
            return aten.constant_pad_nd(numbers, _numbers(given["pad"]), NOTHING) if is_constant else None

        def value(n: fx.Node) -> Any:
            if n in self.found:
                return self.found[n].numbers
            return n.meta["number"][1] if n.meta["number"] is not None else values[n]

        args, kwargs = fx.map_arg((node.args, node.kwargs), value)
        run: Any = node.target
        return run(*args, **kwargs)


def _joined(one: Tensor, other: Tensor) -> Tensor:
    """The numbers on a sum of two tensors that both have some."""
    rest = torch.where(other == NOTHING, one, torch.where(one == NOTHING, other, SEVERAL))
    return torch.where(one == other, one, rest)


def _overwrites(node: fx.Node) -> bool:
    """Whether an operation changes its first tensor in another way than by adding to it."""
    schema = getattr(node.target, "_schema", None)
    changes = schema is not None and schema.is_mutable and _packet(node) not in _ADDITIONS | _IDENTITIES
    return changes and isinstance(node.args[0], fx.Node)


def _numbers(pad: Sequence[Any]) -> list[int]:
    return [n.meta["number"][1] if isinstance(n, fx.Node) else n for n in pad]


def _shape(node: fx.Node) -> torch.Size:
    """The shape of a node's tensor at two rows."""
    axes = zip(node.meta["shape"], node.meta["per_row"], strict=True)
    return torch.Size(2 * size if grows else size for size, grows in axes)
