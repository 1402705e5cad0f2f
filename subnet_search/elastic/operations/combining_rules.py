"""How channels pass through operators that combine, join, reduce, normalise or pool."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from subnet_search.elastic.operations.contractions import distinct
from subnet_search.elastic.operations.label_flow import Given, LabelFlow, along_axis, first_of, name_of
from subnet_search.elastic.operations.labels import Factors, axes_of, compressed


def same(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """Each element becomes another one in its place."""
    return flow.of(first_of(given))


def nothing(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """Reads no element, only a size or a type."""
    return ()


def padded(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """New positions along an axis with channels are in every sub-net."""
    x, pad, rank = given["self"], given["pad"], len(flow.shape(node))
    result = []
    for factor in map(flow.labels.roots, flow.of(x)):
        for i in range(len(pad) // 2):
            axis, before, after = rank - 1 - i, pad[2 * i], pad[2 * i + 1]
            if factor.shape[axis] == 1 or (before, after) == (0, 0):
                continue
            if given.get("mode", "constant") != "constant" or before < 0 or after < 0:
                flow.labels.freeze([factor], f"{name_of(node)} along the axis of the channels")
            if min(before, after) >= 0:
                ends = [list(factor.shape), list(factor.shape)]
                ends[0][axis], ends[1][axis] = before, after
                parts = []
                for end in ends:
                    ids = flow.channels.new(int(np.prod(end)))
                    flow.channels.freeze(ids, "padding")
                    parts.append(torch.from_numpy(ids).reshape(end))
                factor = torch.cat([parts[0], factor, parts[1]], dim=axis)
            else:
                factor = torch.nn.functional.pad(factor, [0, 0] * i + [before, after])
        result.append(factor)
    return tuple(result)


def aligned(flow: LabelFlow, value: Any, rank: int) -> tuple[tuple[int, ...], Factors]:
    """Shape and factors of an operand, as broadcasting sees them."""
    shape = flow.shape(value)
    missing = rank - len(shape)
    return (1,) * missing + shape, tuple(f.reshape((1,) * missing + tuple(f.shape)) for f in flow.of(value))


def combined(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """Tensors that are combined element by element keep the same positions."""
    operands = [v for v in given.values() if isinstance(v, fx.Node) and v.meta["shape"] is not None]
    return elementwise(flow, [aligned(flow, v, len(flow.shape(node))) for v in operands], name_of(node))


def elementwise(flow: LabelFlow, operands: Sequence[tuple[tuple[int, ...], Factors]], what: str) -> Factors:
    """Factors of what comes of combining aligned tensors.

    A factor over several axes that meets one over a single axis keeps the freedom of its outermost axis (heads).
    """
    labels, rank = flow.labels, len(operands[0][0])
    held = [list(map(labels.roots, factors)) for _, factors in operands]
    reason = f"{what} combines it with what is not elastic"
    for axis in range(rank):
        carriers = [i for i, (shape, _) in enumerate(operands) if shape[axis] > 1]
        varying = [(i, f) for i in carriers for f in held[i] if f.shape[axis] > 1]
        if not varying or len(carriers) == 1:
            continue
        outermost = all(min(axes_of(f)) == axis for _, f in varying)
        shapes = {axes_of(f) for _, f in varying}
        if len({i for i, _ in varying}) < len(carriers) or (len(shapes) > 1 and not outermost):
            for i in carriers:
                held[i] = list(labels.restrict(tuple(held[i]), axis, reason))
        else:
            for (_, first), (_, second) in itertools.pairwise(varying):
                labels.unite(first, second)
            held = [[labels.roots(f) for f in factors] for factors in held]
    return distinct(labels, [f for factors in held for f in factors])


def concatenated(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """Along the axis positions stand beside each other; along the others all parts keep the same."""
    parts, rank = [p for p in given["tensors"] if np.prod(flow.shape(p))], len(flow.shape(node))
    axis = given["dim"] % rank
    along = [[f for f in map(flow.labels.roots, flow.of(p)) if f.shape[axis] > 1] for p in parts]
    across = [
        (
            tuple(1 if a == axis else s for a, s in enumerate(flow.shape(p))),
            tuple(f for f in map(flow.labels.roots, flow.of(p)) if f.shape[axis] == 1),
        )
        for p in parts
    ]
    found: Factors = elementwise(flow, across, name_of(node)) if any(f for _, f in across) else ()
    if not any(along):
        return found
    columns = []
    for part, factors in zip(parts, along, strict=True):
        size = flow.shape(part)[axis]
        factors = [f if axes_of(f) == (axis,) else None for f in factors]  # type: ignore[misc]
        if len(factors) == 1 and factors[0] is not None:
            columns.append(factors[0].flatten())
        else:
            for f in along[parts.index(part)]:
                flow.labels.freeze([f], f"{name_of(node)} of tensors whose channels do not line up")
            ids = flow.channels.new(size)
            flow.channels.freeze(ids, "it is concatenated with what is elastic")
            columns.append(torch.from_numpy(ids))
    return (*found, along_axis(torch.cat(columns).numpy(), axis, rank))


def stacked(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """All parts keep the same positions."""
    rank = len(flow.shape(node))
    axis = given["dim"] % rank
    found = elementwise(flow, [(flow.shape(p), flow.of(p)) for p in given["tensors"]], name_of(node))
    return tuple(f.unsqueeze(axis) for f in found)


def glu(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """The first half of an axis gated by the second: both keep the same positions."""
    x, half = given["self"], flow.shape(node)[given["dim"]]
    axis = given["dim"] % len(flow.shape(x))
    halves = (
        tuple(f if f.shape[axis] == 1 else compressed(f.narrow(axis, start, half)) for f in flow.of(x))
        for start in (0, half)
    )
    return elementwise(flow, [(flow.shape(node), factors) for factors in halves], name_of(node))


def reduced(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """Sums, means, norms, extrema over axes; over channels, sub-nets reduce over those they keep."""
    x = first_of(given)
    rank, dims = len(flow.shape(x)), given.get("dim")
    axes = {d % rank for d in ([dims] if isinstance(dims, int) else dims or range(rank))}
    found = []
    for factor in map(flow.labels.roots, flow.of(x)):
        for axis in axes:
            factor = flow.labels.collapse(factor, axis) if len(axes_of(factor)) > 1 else factor
        if set(axes_of(factor)) <= axes:
            continue
        found.append(factor if given.get("keepdim") else factor.squeeze(tuple(axes)))
    result = tuple(found)
    return [result, result] if node.meta["shape"] is None else result  # type: ignore[return-value]


def normalised(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """Layer norm and its kin without a layer of ours: over the last axes, with parameters along them."""
    x, rank = first_of(given), len(flow.shape(node))
    operands = [aligned(flow, v, rank) for v in (x, given.get("weight"), given.get("bias")) if v is not None]
    return elementwise(flow, operands, name_of(node))


def batch_normalised(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """Batch norm without a layer of ours, of weights say."""
    x, rank = given["input"], len(flow.shape(node))
    vectors = [given[n] for n in ("weight", "bias", "running_mean", "running_var") if given[n] is not None]
    operands = [aligned(flow, x, rank)]
    for vector in vectors:
        shape = [1, flow.shape(vector)[0], *[1] * (rank - 2)]
        operands.append((tuple(shape), tuple(f.reshape(shape) for f in flow.of(vector))))
    return elementwise(flow, operands, name_of(node))


def prelu(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """Its slopes lie along the second axis."""
    rank, slopes = len(flow.shape(node)), given["weight"]
    shape = tuple(flow.shape(slopes)[0] if axis == 1 else 1 for axis in range(rank))
    operands = [aligned(flow, given["self"], rank), (shape, tuple(f.reshape(shape) for f in flow.of(slopes)))]
    return elementwise(flow, operands, name_of(node))


def pooled(flow: LabelFlow, node: fx.Node, given: Given) -> Factors | list[Factors]:
    """What works on the last axes, whose positions it mixes: pooling, resizing."""
    x = first_of(given)
    start = 2 if len(flow.shape(x)) > 3 or "1d" in name_of(node) else 1
    factors = tuple(map(flow.labels.roots, flow.of(x)))
    for axis in range(start, len(flow.shape(x))):
        factors = flow.labels.restrict(factors, axis, f"{name_of(node)} mixes the axis")
    return [factors, factors] if node.meta["shape"] is None else factors
