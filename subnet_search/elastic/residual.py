"""Finds the blocks that may be skipped: those whose input reaches their output by additions alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx, nn

from subnet_search.elastic.flow import matches
from subnet_search.elastic.graph import Call, Traced, home_paths
from subnet_search.elastic.rules import ACTIVATIONS, ADDITIONS, DROPOUTS, IDENTITY_FUNCTIONS, function_key


def skippable_blocks(traced: Traced, exclude: Sequence[str] = ()) -> tuple[str, ...]:
    """Paths of skippable blocks in forward order.

    A block takes one tensor and returns one of the same shape; an activation may follow the last addition
    (skipping leaves it out: after such a block's own kind it changes nothing). A container whose called
    children all qualify is left out in favour of its children.
    """
    calls: dict[str, list[Call]] = {}
    for call in traced.calls:
        calls.setdefault(call.path, []).append(call)
    qualified = [
        path for path, made in calls.items() if len(made) == 1 and _adds_to_its_input(traced, made[0])
    ]
    trivial = {
        str(n.target) for n in traced.graph.nodes if n.op == "call_module" and _passes(traced, n, DROPOUTS)
    }
    trivial |= {path for path, made in calls.items() if all(_only_passes_on(call) for call in made)}
    called = {str(n.target) for n in traced.graph.nodes if n.op == "call_module"} | set(calls)
    order = {path: i for i, path in enumerate(_order_of_start(traced))}
    homes = home_paths(traced.model)
    kept = [
        path
        for path in qualified
        if not _children_of(traced.model.get_submodule(path), path, homes, called) <= {*qualified, *trivial}
        and not matches(path, exclude)
    ]
    return tuple(sorted(kept, key=lambda path: order.get(path, len(order))))


def _children_of(block: nn.Module, path: str, homes: Mapping[str, str], called: set[str]) -> set[str]:
    return {homes[f"{path}.{name}"] for name, _ in block.named_children()} & called or {""}


def _only_passes_on(call: Call) -> bool:
    """Whether a call changes nothing, such as that of a dropout in an exported graph."""
    node = call.output
    while node is not None and node.target in _IDENTITIES:
        node = node.all_input_nodes[0]
    return node is not None and (node,) == call.inputs


def _order_of_start(traced: Traced) -> list[str]:
    paths = (path for node in traced.graph.nodes for path in node.meta["scope"])
    return list(dict.fromkeys(paths))


def _adds_to_its_input(traced: Traced, call: Call) -> bool:
    if len(call.inputs) != 1 or call.output is None or call.output is call.inputs[0]:
        return False
    source, node = call.inputs[0], call.output
    if source.meta["shape"] is None or source.meta["shape"] != node.meta["shape"]:
        return False
    if _passes(traced, node, ACTIVATIONS) or node.target in _RELUS:
        node = node.all_input_nodes[0]
    return _reaches(traced, node, source)


aten = torch.ops.aten
_RELUS = frozenset({nn.functional.relu, "relu", "relu_", aten.relu.default, aten.relu_.default})
_ADDITIONS = ADDITIONS | {aten.add.Tensor, aten.add_.Tensor}
_IDENTITIES = frozenset({
    aten.dropout.default, aten.feature_dropout.default, aten.alias.default, aten.contiguous.default,
    aten.clone.default,
})  # fmt: skip


def _reaches(traced: Traced, node: fx.Node, source: fx.Node) -> bool:
    """Whether `source` is an addend of `node`, through operations that change nothing."""
    open_nodes, seen = [(node, False)], set()
    while open_nodes:
        here, added = open_nodes.pop()
        if here is source and added:
            return True
        is_addition = here.target in _ADDITIONS
        through = (
            is_addition
            or here.target in _IDENTITIES
            or (here.op == "call_function" and function_key(here.target) in IDENTITY_FUNCTIONS)
            or _passes(traced, here, DROPOUTS)
        )
        if through and (here, added) not in seen:
            seen.add((here, added))
            open_nodes.extend((before, added or is_addition) for before in here.all_input_nodes)
    return False


def _passes(traced: Traced, node: fx.Node, kinds: tuple[type[nn.Module], ...]) -> bool:
    return node.op == "call_module" and isinstance(traced.module(node), kinds)
