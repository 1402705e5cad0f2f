"""Which operators of an exported graph multiply and add, and over which axes."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from subnet_search.elastic.operations.exported import aten
from subnet_search.elastic.operations.label_flow import arguments, at_one_row
from subnet_search.elastic.operations.operators import OPERATORS

Letter = tuple[fx.Node, int, int]  # an axis of a tensor, of which every so-manieth position counts
Product = list[Letter]  # multiply-adds: the sizes of all letters multiplied


def products(node: fx.Node) -> list[Product]:
    """The products that an operator computes; none for one that does not multiply and add."""
    rule = _PRODUCTS.get(cast(Any, getattr(node.target, "overloadpacket", None)))
    return [] if rule is None else rule(node, arguments(node))


def other_macs(node: fx.Node) -> int:
    """Multiply-adds of an operator that no rule knows, counted while it runs: it keeps all channels.

    Of a module that is called as it is, those that were counted when it was recorded.
    """
    if node.op == "call_module":
        return int(node.meta["macs"])
    packet = getattr(node.target, "overloadpacket", None)
    if node.op != "call_function" or packet is None or packet in OPERATORS or packet in _PRODUCTS:
        return 0
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        args, kwargs = fx.map_arg((node.args, node.kwargs), _stand_in)
        node.target(*args, **kwargs)  # type: ignore[operator]
    return int(counter.get_total_flops()) // 2


def _stand_in(node: fx.Node) -> Any:
    if node.meta["number"] is not None:
        return node.meta["number"][0]
    return torch.zeros(node.meta["shape"], dtype=node.meta["dtype"])


def _axes(node: fx.Node, without: int = 0) -> Product:
    return [(node, axis, 1) for axis in range(len(node.meta["shape"]) - without)]


def _linear(node: fx.Node, given: dict[str, Any]) -> list[Product]:
    return [[*_axes(node), (given["input"], -1, 1)]]


def _matmul(node: fx.Node, given: dict[str, Any]) -> list[Product]:
    return [[*_axes(node), (next(iter(given.values())), -1, 1)]]


def _addmm(node: fx.Node, given: dict[str, Any]) -> list[Product]:
    return [[*_axes(node), (given["mat1"], -1, 1)]]


def _attention(node: fx.Node, given: dict[str, Any]) -> list[Product]:
    query, key, value = given["query"], given["key"], given["value"]
    scores = [*_axes(query, 1), (key, -2, 1)]
    return [[*scores, (query, -1, 1)], [*scores, (value, -1, 1)]]


def _einsum(node: fx.Node, given: dict[str, Any]) -> list[Product]:
    letters: dict[str, Letter] = {}
    sides = given["equation"].replace(" ", "").partition("->")[0].split(",")
    for side, tensor in zip(sides, given["tensors"], strict=True):
        for axis, letter in enumerate(side):
            letters.setdefault(letter, (tensor, axis, 1))
    return [list(letters.values())]


def _convolution(node: fx.Node, given: dict[str, Any]) -> list[Product]:
    weight, groups = given["weight"], at_one_row(given["groups"])
    spatial = len(weight.meta["shape"]) - 2
    channels = (given["input"], -1 - spatial, groups)
    return [[*_axes(node), channels, *((weight, 2 + i, 1) for i in range(spatial))]]


_PRODUCTS = {
    aten.linear: _linear,
    **dict.fromkeys((aten.matmul, aten.bmm, aten.mm), _matmul),
    aten.addmm: _addmm,
    aten.scaled_dot_product_attention: _attention,
    aten.einsum: _einsum,
    **dict.fromkeys((aten.conv1d, aten.conv2d, aten.conv3d), _convolution),
}
