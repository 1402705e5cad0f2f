"""How channels pass through operators that only move elements: they are run on the ids themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from subnet_search.elastic.operations.exported import aten
from subnet_search.elastic.operations.label_flow import Given, LabelFlow, first_of, name_of
from subnet_search.elastic.operations.labels import Factors, axes_of, compressed


def reshaped(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """The same elements in the same order, in other axes."""
    shape = flow.shape(first_of(given))
    factors = (
        f.expand(shape).reshape(flow.shape(node)) for f in map(flow.labels.roots, flow.of(first_of(given)))
    )
    return tuple(f for f in map(compressed, factors) if axes_of(f))


def expanded(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """The same elements again and again along other axes."""
    missing = len(flow.shape(node)) - len(flow.shape(first_of(given)))
    return tuple(f.reshape((1,) * missing + tuple(f.shape)) for f in flow.of(first_of(given)))


def moved(flow: LabelFlow, node: fx.Node, given: Given) -> Factors | list[Factors]:
    """Runs an operator that only moves elements on the ids."""
    x = first_of(given)
    results = [run_on(flow, node, f.expand(flow.shape(x))) for f in map(flow.labels.roots, flow.of(x))]
    if results and isinstance(results[0], list | tuple):
        return [
            tuple(f for f in map(compressed, parts) if axes_of(f)) for parts in zip(*results, strict=True)
        ]
    return tuple(f for f in map(compressed, results) if axes_of(f))


def run_on(flow: LabelFlow, node: fx.Node, ids: Tensor) -> Any:
    """The operator's own result for other elements in its first argument."""

    def value(n: fx.Node) -> Any:
        if n is node.args[0]:
            return ids
        return n.meta["number"][0] if n.meta["number"] is not None else flow.traced.value(n)

    args, kwargs = fx.map_arg((node.args, node.kwargs), value)
    run: Any = node.target
    return run(ids.double(), *args[1:], **kwargs).round().long() if run in _FLOATING else run(*args, **kwargs)


_FLOATING = (aten.im2col.default, aten.pixel_shuffle.default, aten.pixel_unshuffle.default)


def moved_elsewhere(flow: LabelFlow, node: fx.Node, given: Given) -> Factors | list[Factors]:
    """Moves that cannot be told of fewer positions along their own axes: these keep all they have."""
    x = first_of(given)
    dims: Any = given.get("dims", given.get("dimension"))
    axes = dims if isinstance(dims, list | tuple) else [dims]
    return _on_other_axes(flow, node, given, [d % len(flow.shape(x)) for d in axes])


def _on_other_axes(
    flow: LabelFlow, node: fx.Node, given: Given, axes: Sequence[int]
) -> Factors | list[Factors]:
    x = first_of(given)
    factors = flow.of(x)
    for axis in axes:
        factors = flow.labels.restrict(factors, axis, f"{name_of(node)} along the axis")
    flow.factors[x] = factors
    return moved(flow, node, given)


def indexed(flow: LabelFlow, node: fx.Node, given: Given) -> Factors | list[Factors]:
    """Indexing by constant tensors only moves; a channel axis can be indexed by a list of positions."""
    x, indices = given["self"], given["indices"]
    if not all(i is None or flow.traced.is_constant(i) for i in indices):
        flow.freeze(x, f"{name_of(node)} is told by a computed tensor")
        return ()
    told = [axis for axis, i in enumerate(indices) if i is not None]
    if len(told) == 1 and len(flow.shape(indices[told[0]])) == 1:
        return moved(flow, node, given)
    return _on_other_axes(flow, node, given, told)
