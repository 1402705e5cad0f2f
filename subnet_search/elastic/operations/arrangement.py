"""Units of several channels: whether operators that pick positions move all of them alike."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, fx

from subnet_search.elastic.operations.exported import aten
from subnet_search.elastic.operations.label_flow import Given, LabelFlow, arguments
from subnet_search.elastic.operations.labels import Factor, axes_of
from subnet_search.elastic.operations.move_rules import run_on


def arrangements(flow: LabelFlow) -> Iterator[tuple[str, dict[int, int]]]:
    """How the positions of each unit follow each other after an operator has picked from an axis.

    Reordering puts the first position of one unit where the first of another stood, the second where the second
    stood, and so on, in every tensor. That is the same function only for units of which an operator picks the same
    positions, in the same order.

    Returns:
        For each result of such an operator its name, and for each class of channels in it a number: equal numbers,
        equal positions.
    """
    for node in flow.traced.graph.nodes:
        if getattr(node.target, "overloadpacket", None) in _PICKING:
            given = arguments(node)
            for ids in map(flow.labels.roots, flow.of(given["self"])):
                if axes_of(ids) == (_axis(node, given, ids.ndim),):
                    yield from _after(flow, node, ids)


def _after(flow: LabelFlow, node: fx.Node, ids: Factor) -> Iterator[tuple[str, dict[int, int]]]:
    ranks = _ranks(ids)
    found = run_on(flow, node, ids), run_on(flow, node, ranks)
    kept, places = ([result] if isinstance(result, Tensor) else result for result in found)
    for i, (classes, order) in enumerate(zip(kept, places, strict=True)):
        numbers: dict[tuple[int, ...], int] = {}
        yield (
            f"{node.name}[{i}]",
            {
                root: numbers.setdefault(tuple(order[classes == root].tolist()), len(numbers))
                for root in classes.unique().tolist()
            },
        )


def _ranks(ids: Factor) -> Tensor:
    """For every position how many of its class stand before it."""
    flat = ids.flatten().numpy()
    order = np.argsort(flat, kind="stable")
    starts = np.searchsorted(flat[order], flat[order])
    ranks = np.empty_like(flat)
    ranks[order] = np.arange(len(flat)) - starts
    return torch.from_numpy(ranks).reshape(ids.shape)


def _axis(node: fx.Node, given: Given, rank: int) -> int | None:
    if "indices" not in given:
        return int(given["dim"]) % rank
    told = [axis for axis, index in enumerate(given["indices"]) if index is not None]
    return told[0] if len(told) == 1 else None


_PICKING = (
    aten.index, aten.index_select, aten.slice, aten.select, aten.split, aten.split_with_sizes, aten.chunk, aten.unbind,
)  # fmt: skip
