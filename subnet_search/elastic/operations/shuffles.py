"""Channel shuffles, which frameworks write as reshape, transpose, reshape: one permutation of one axis each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from subnet_search.elastic.operations.exported import Exported, aten, calls_in

STEPS = frozenset(
    {
        aten.view,
        aten.reshape,
        aten.permute,
        aten.transpose,
        aten.contiguous,
        aten.clone,
        aten.flatten,
        aten.unflatten,
    }
)


def fuse_shuffles(traced: Exported) -> Exported:
    """Replaces every chain of moves that permutes one axis by an index, so that single channels can be left out.

    In between a channel has two axes, and what is left of these would have to be dense. Returns the graph, which is
    changed, with the calls of modules that are left in it.
    """
    gone: set[fx.Node] = set()
    for node in list(traced.graph.nodes):
        chain = [] if node in gone else _chain(node)
        if len(chain) < 2:
            continue
        source: Any = chain[0].args[0]
        found = _permutation(source.meta["shape"], chain)
        if found is not None:
            axis, order = found
            with traced.graph.inserting_after(chain[-1]):
                index = traced.graph.get_attr(traced.add_constant(order))
            with traced.graph.inserting_after(index):
                shuffled = traced.graph.call_function(aten.index_select.default, (source, axis, index))
            shuffled.meta = dict(chain[-1].meta)
            index.meta = {
                **chain[-1].meta, "shape": (len(order),), "per_row": (False,), "memory": None, "dtype": torch.int64
            }  # fmt: skip
            chain[-1].replace_all_uses_with(shuffled)
            for old in reversed(chain):
                traced.graph.erase_node(old)
            gone.update(chain)
    return replace(traced, calls=tuple(calls_in(traced.graph)))


def _chain(start: fx.Node) -> list[fx.Node]:
    """The moves from a node on, each the only reader of the one before, up to the last with the shape at the start."""
    chain: list[fx.Node] = []
    node, length = start, 0
    while getattr(node.target, "overloadpacket", None) in STEPS:
        chain.append(node)
        if node.meta["shape"] == start.args[0].meta["shape"]:  # type: ignore[union-attr]
            length = len(chain)
        if len(node.users) != 1:
            break
        node = next(iter(node.users))
        if node.args[0] is not chain[-1]:
            break
    return chain[:length]


def _permutation(shape: tuple[int, ...], chain: list[fx.Node]) -> tuple[int, Tensor] | None:
    """The axis and the order, where a chain permutes the positions of one axis and does nothing else."""
    places = torch.arange(torch.Size(shape).numel()).reshape(shape)
    moved = places
    for node in chain:
        args, kwargs = fx.map_arg((node.args[1:], node.kwargs), lambda n: n.meta["number"][0])
        moved = node.target(moved, *args, **kwargs)  # type: ignore[operator]
    for axis in range(len(shape)):
        first = [0] * len(shape)
        first[axis] = slice(None)  # type: ignore[call-overload]
        order = (moved[tuple(first)] - places[tuple([0] * len(shape))]) // places.stride(axis)
        known = bool(((order >= 0) & (order < shape[axis])).all())
        if known and torch.equal(moved, places.index_select(axis, order)):
            return None if torch.equal(order, torch.arange(shape[axis])) else (axis, order)
    return None
