"""Writes an exported graph down as a program: each operator with the numbers that sub-nets change left open."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils._pytree import TreeSpec, tree_flatten

from subnet_search.elastic.graph import UntraceableModelError
from subnet_search.elastic.groups import ChannelMap, Grouping
from subnet_search.elastic.operations.exported import Exported, aten
from subnet_search.elastic.operations.label_flow import Given, LabelFlow, arguments, at_one_row
from subnet_search.elastic.operations.labels import axes_of
from subnet_search.elastic.operations.operators import EXPANSIONS, RESHAPES
from subnet_search.elastic.operations.program import (
    Bypass,
    Count,
    Layer,
    Part,
    Positions,
    Program,
    Statement,
    Tap,
    Weight,
    into,
)
from subnet_search.elastic.residual import handed_on


def write_program(traced: Exported, flow: LabelFlow, grouping: Grouping, blocks: Sequence[str]) -> Program:
    """Writes the statements of an exported graph.

    Raises:
        UntraceableModelError: an operation cannot be written down.
    """
    return _Writer(traced, flow, grouping, blocks).program()


class _Writer:
    def __init__(self, traced: Exported, flow: LabelFlow, grouping: Grouping, blocks: Sequence[str]) -> None:
        self.traced, self.flow, self.grouping, self.blocks = traced, flow, grouping, blocks
        self.maps: dict[bytes, ChannelMap] = {}

    def program(self) -> Program:
        statements, inputs, answer, uses = [], [], "None", ()
        for node in self.traced.graph.nodes:
            if node.op == "placeholder":
                inputs.append(node.name)
            elif node.op == "output":
                stored = [n for n in node.all_input_nodes if n.op == "get_attr"]
                statements += [Statement(n.name, (Weight(str(n.target)),), (), ()) for n in stored]
                leaves = tree_flatten(node.args[0])[0]
                names = [v.name if v in stored else self._plain(v) for v in leaves]
                answer = _packed(names, self.traced.out_spec)
                uses = tuple(n.name for n in node.all_input_nodes)
            elif node.op != "get_attr" and node.meta["number"] is None:
                around = tuple(path for path in node.meta["scope"] if path in self.blocks)
                used = tuple(
                    n.name for n in node.all_input_nodes if n.op != "get_attr" and n.meta["number"] is None
                )
                statements.append(Statement(node.name, tuple(self._parts(node)), used, around))
        bypasses = {
            path: Bypass(tuple(n.name for n in handed.outputs), tuple(n.name for n in handed.inputs))
            for path, handed in handed_on(self.traced, self.blocks).items()
        }
        return Program(tuple(inputs), tuple(statements), bypasses, answer, uses)

    def _plain(self, value: Any) -> str:
        return "".join(part if isinstance(part, str) else "?" for part in self.value(value))

    def _parts(self, node: fx.Node) -> Iterator[Part]:
        if node.op == "call_module":
            yield Layer(str(node.target))
            yield from self.call("", node.args, node.kwargs)
            return
        if node.target is operator.getitem:
            yield from self.value(node.args[0])
            yield f"[{node.args[1]!r}]"
            return
        packet = getattr(node.target, "overloadpacket", None)
        if packet is None:
            raise UntraceableModelError(
                f"{node.name} is no operator of torch ({node.target}); set exclude for the module that calls it"
            )
        if not str(packet).startswith("aten."):
            yield from self.call(f"torch.ops.{node.target}", node.args, node.kwargs)
            return
        special = _SPECIAL.get(packet)
        found = None if special is None else special(self, node, arguments(node))
        yield from self.call(str(node.target), self.tapped(node), node.kwargs) if found is None else found

    def call(self, target: str, args: Any, kwargs: Mapping[str, Any]) -> Iterator[Part]:
        yield f"{target}("
        for i, value in enumerate(args):
            yield ", " if i else ""
            yield from self.value(value)
        for i, (name, value) in enumerate(kwargs.items()):
            yield ", " if i or args else ""
            yield f"{name}="
            yield from self.value(value)
        yield ")"

    def tapped(self, node: fx.Node) -> list[Any]:
        """The arguments of an operator, with a tap on the first that has elastic channels which a product sums over."""
        args: list[Any] = list(node.args)
        for i, axis in _SUMMED.get(node.target.overloadpacket, ()):  # type: ignore[union-attr]
            x = args[i]
            channel_map = self.map_of(x, len(x.meta["shape"]) + axis)
            if channel_map is not None and x.op != "get_attr":
                args[i] = Tap(into(node.name), x.name, axis, channel_map)
                break
        return args

    def value(self, value: Any) -> Iterator[Part]:
        if isinstance(value, fx.Node):
            if value.op == "get_attr":
                yield Weight(str(value.target))
            elif value.meta["number"] is not None:
                yield _number(value)
            else:
                yield value.name
        elif isinstance(value, list | tuple):
            yield "["
            for i, one in enumerate(value):
                yield ", " if i else ""
                yield from self.value(one)
            yield "]"
        elif isinstance(value, torch.device):
            yield "device"
        elif isinstance(value, float) and not np.isfinite(value):
            yield f"float('{value}')"
        elif isinstance(value, Count | Positions | Tap):
            yield value
        else:
            yield repr(value)

    # numbers that depend on widths

    def map_of(self, value: Any, axis: int) -> ChannelMap | None:
        """The channels along an axis of a tensor, if some are elastic."""
        return next((found for f in self.flow.of(value) if (found := self._map(f, axis))), None)

    def _map(self, factor: Tensor, axis: int) -> ChannelMap | None:
        factor = self.flow.labels.roots(factor)
        if axes_of(factor) != (axis,):
            return None
        key = factor.numpy().tobytes()
        if key not in self.maps:
            self.maps[key] = self.grouping.channel_map(factor.flatten().numpy())
        found = self.maps[key]
        return found if found.groups else None

    def sizes(self, node: fx.Node) -> Iterator[Part]:
        """The shape of a node's tensor."""
        yield "["
        for axis, (size, grows) in enumerate(zip(node.meta["shape"], node.meta["per_row"], strict=True)):
            yield ", " if axis else ""
            channel_map = self.map_of(node, axis)
            if grows and (size != 1 or channel_map is not None):
                yield "rows * "
            yield (
                "rows"
                if grows and size == 1
                else str(size)
                if channel_map is None
                else Count(channel_map, 0, size)
            )
        yield "]"


def _number(node: fx.Node) -> str:
    one, two = node.meta["number"]
    if one == two:
        return str(one)
    if two != 2 * one:
        raise UntraceableModelError(
            f"{node.name} does not grow in step with the batch: {one} for one row, {two} for two"
        )
    return "rows" if one == 1 else f"rows * {one}"


def _packed(values: list[str], spec: TreeSpec | None) -> str:
    """The outputs as source, packed as the model packs them."""
    rest = iter(values)

    def packed(spec: TreeSpec) -> str:
        if spec.is_leaf():
            return next(rest)
        inner = [packed(child) for child in spec.children()]
        if spec.type is list:
            return f"[{', '.join(inner)}]"
        if spec.type is tuple:
            return f"({', '.join(inner)},)"
        if isinstance(spec.type, type) and issubclass(spec.type, dict):
            return "{" + ", ".join(f"{k!r}: {v}" for k, v in zip(_keys(spec), inner, strict=True)) + "}"
        raise UntraceableModelError(
            f"the model returns a {spec.type.__name__}; return tensors, tuples, lists or dicts"
        )

    return next(rest) if spec is None else packed(spec)


def _keys(spec: TreeSpec) -> list[Any]:
    context = spec.context
    return list(context[1] if context and isinstance(context[0], type) else context)


def _reshape(writer: _Writer, node: fx.Node, given: Given) -> Iterator[Part]:
    yield from writer.value(next(iter(given.values())))
    yield ".reshape("
    yield from writer.sizes(node)
    yield ")"


def _expand(writer: _Writer, node: fx.Node, given: Given) -> Iterator[Part]:
    yield from writer.value(next(iter(given.values())))
    yield ".expand("
    yield from writer.sizes(node)
    yield ")"


def _select(writer: _Writer, node: fx.Node, given: Given) -> Iterator[Part] | None:
    x, rank = given["self"], len(given["self"].meta["shape"])
    dim, size = given["dim"] % rank, given["self"].meta["shape"][given["dim"]]
    channel_map = writer.map_of(x, dim)
    if channel_map is None:
        return None
    return writer.call(str(node.target), (x, dim, Count(channel_map, 0, given["index"] % size)), {})


def _slice(writer: _Writer, node: fx.Node, given: Given) -> Iterator[Part] | None:
    x, dim = given["self"], given["dim"] % len(given["self"].meta["shape"])
    channel_map = writer.map_of(x, dim)
    if channel_map is None:
        return None
    positions = np.arange(channel_map.size)[slice(given["start"], given["end"], given["step"])]
    if len(positions) == channel_map.size:
        return writer.value(x)
    if x.meta["per_row"][dim]:
        raise UntraceableModelError(f"{node.name} takes some of the rows of a batch that lie among channels")
    if given["step"] != 1:
        return writer.call(
            "torch.index_select", (x, dim, Positions(channel_map, tuple(positions.tolist()))), {}
        )
    if not len(positions):
        return None
    ends = (Count(channel_map, 0, int(positions[0])), Count(channel_map, 0, int(positions[-1]) + 1))
    return writer.call(str(node.target), (x, dim, *ends), {})


def _split(writer: _Writer, node: fx.Node, given: Given) -> Iterator[Part] | None:
    x = given["self"]
    dim = given["dim"] % len(x.meta["shape"])
    channel_map = writer.map_of(x, dim)
    if channel_map is None:
        return None
    size = x.meta["shape"][dim]
    if "chunks" in given:
        each = -(-size // given["chunks"])
        lengths = [min(each, size - start) for start in range(0, size, each)]
    else:
        told: Any = given.get("split_size", given.get("split_sizes"))
        lengths = (
            [min(told, size - at) for at in range(0, size, told)] if isinstance(told, int) else list(told)
        )
    starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    counts = [Count(channel_map, a, b) for a, b in itertools.pairwise(starts)]
    return writer.call("torch.split", (x, counts, dim), {})


def _index_select(writer: _Writer, node: fx.Node, given: Given) -> Iterator[Part] | None:
    x, dim = given["self"], given["dim"] % len(given["self"].meta["shape"])
    channel_map = writer.map_of(x, dim)
    if channel_map is None:
        return None
    positions = writer.traced.value(given["index"]).numpy()
    return writer.call("torch.index_select", (x, dim, Positions(channel_map, tuple(positions.tolist()))), {})


def _index(writer: _Writer, node: fx.Node, given: Given) -> Iterator[Part] | None:
    x, indices = given["self"], given["indices"]
    told = [axis for axis, i in enumerate(indices) if i is not None]
    if len(told) != 1 or (channel_map := writer.map_of(x, told[0])) is None:
        return None
    positions = writer.traced.value(indices[told[0]]).numpy() % channel_map.size
    return writer.call(
        "torch.index_select", (x, told[0], Positions(channel_map, tuple(positions.tolist()))), {}
    )


def _layer_norm(writer: _Writer, node: fx.Node, given: Given) -> Iterator[Part] | None:
    x, shape = given["input"], given["normalized_shape"]
    first = len(x.meta["shape"]) - len(shape)
    maps = [writer.map_of(x, first + i) for i in range(len(shape))]
    if not any(maps):
        return None
    sizes = [size if m is None else Count(m, 0, size) for m, size in zip(maps, shape, strict=True)]
    return writer.call(str(node.target), (x, sizes, *list(given.values())[2:]), {})


def _convolution(writer: _Writer, node: fx.Node, given: Given) -> Iterator[Part] | None:
    groups, weight = given["groups"], given["weight"]
    channel_map = writer.map_of(weight, 0) if at_one_row(groups) > 1 else None
    if channel_map is None:
        return None
    count = Count(channel_map, 0, channel_map.size, channel_map.size // groups)
    return writer.call(str(node.target), (*list(given.values())[:-1], count), {})


def _batch_norm(writer: _Writer, node: fx.Node, given: Given) -> None:
    if given["running_mean"] is not None:
        raise UntraceableModelError(
            f"{node.name} is a batch norm whose statistics cannot be set for each sub-net: it is no layer of torch's; "
            "use torch's BatchNorm1d, 2d or 3d there, or a sub-class of them"
        )


def _dropout(writer: _Writer, node: fx.Node, given: Given) -> Iterator[Part]:
    x = next(iter(given.values()))
    if given["p"] == 0:
        return writer.value(x)
    return writer.call(str(node.target), (x, given["p"], _Name("self.training")), {})


class _Name(str):
    """Source that is written as it is."""

    def __repr__(self) -> str:
        return str(self)


_SPECIAL: dict[Any, Callable[[_Writer, fx.Node, Given], Iterator[Part] | None]] = {
    **{getattr(aten, name): _reshape for name in RESHAPES},
    **{getattr(aten, name): _expand for name in EXPANSIONS},
    **dict.fromkeys((aten.split, aten.split_with_sizes, aten.chunk), _split),
    **dict.fromkeys((aten.layer_norm, aten.rms_norm), _layer_norm),
    **dict.fromkeys((aten.conv1d, aten.conv2d, aten.conv3d), _convolution),
    **dict.fromkeys((aten.dropout, aten.dropout_, aten.feature_dropout), _dropout),
    aten.batch_norm: _batch_norm,
    aten.select: _select,
    aten.slice: _slice,
    aten.index_select: _index_select,
    aten.index: _index,
}


# Operators that multiply and add: which of their arguments they sum over, along which axis.
_SUMMED: dict[Any, tuple[tuple[int, int], ...]] = {
    aten.linear: ((0, -1),),
    **dict.fromkeys((aten.matmul, aten.bmm, aten.mm), ((0, -1), (1, -2))),
    aten.addmm: ((1, -1), (2, -2)),
    aten.scaled_dot_product_attention: ((0, -1),),
    **{packet: ((0, -1 - n),) for n, packet in enumerate((aten.conv1d, aten.conv2d, aten.conv3d), start=1)},
}
