"""Finds the blocks that may be skipped: one input reaches each of their outputs by additions alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from subnet_search.elastic.flow import matches
from subnet_search.elastic.graph import Call, Traced, enclosing, home_paths
from subnet_search.elastic.operations.addends import addends
from subnet_search.elastic.operations.exported import Exported
from subnet_search.elastic.rules import ACTIVATIONS, ADDITIONS, DROPOUTS, IDENTITY_FUNCTIONS, function_key


@dataclass(frozen=True)
class HandedOn:
    """What a skipped block answers: for each of its outputs one of its inputs.

    Attributes:
        outputs: of the block.
        inputs: as many, in that order.
        places: of these inputs among the arguments of the call; none where it has one argument, or is not known.
        packed: "tuple" or "list", where the block returns its outputs in one.
    """

    outputs: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    places: tuple[int | str, ...]
    packed: str | None


def handed_on(traced: Traced, blocks: Sequence[str]) -> dict[str, HandedOn]:
    """What the skippable blocks among `blocks` hand on when they are skipped, by path."""
    pieces = _pieces(traced) if isinstance(traced, Exported) else {}
    wanted = set(blocks)
    found = {call.path: _handed_on(traced, call, pieces) for call in traced.calls if call.path in wanted}
    return {path: handed for path, handed in found.items() if handed is not None}


def skippable_blocks(traced: Traced, exclude: Sequence[str] = ()) -> tuple[str, ...]:
    """Paths of skippable blocks in forward order.

    Of each output of a block it must be clear which input it hands on: exactly one of the same shape reaches it by
    additions, and in an exported graph through moves of elements that cancel. An activation may follow the last
    addition (skipping leaves it out: after such a block's own kind it changes nothing). A container whose called
    children all qualify is left out in favour of its children.
    """
    calls: dict[str, list[Call]] = {}
    for call in traced.calls:
        calls.setdefault(call.path, []).append(call)
    qualified = handed_on(traced, [path for path, made in calls.items() if len(made) == 1])
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
        if not (_children_of(path, homes, called) or {""}) <= {*qualified, *trivial}
        and not matches(path, exclude)
    ]
    return tuple(sorted(kept, key=lambda path: order.get(path, len(order))))


def _children_of(path: str, homes: Mapping[str, str], called: set[str]) -> set[str]:
    """The modules that a block calls itself; those in a list are held by the list, which is never called."""
    inside = {home for other, home in homes.items() if other.startswith(f"{path}.")} & called
    return {home for home in inside if inside.isdisjoint(enclosing(home)[:-1])}


def _only_passes_on(call: Call) -> bool:
    """Whether a call changes nothing, such as that of a dropout in an exported graph."""
    return bool(call.outputs) and all(_passed_on(node) in call.inputs for node in call.outputs)


def _passed_on(node: fx.Node) -> fx.Node:
    while node.target in _IDENTITIES:
        node = node.all_input_nodes[0]
    return node


def _order_of_start(traced: Traced) -> list[str]:
    paths = (path for node in traced.graph.nodes for path in node.meta["scope"])
    return list(dict.fromkeys(paths))


Pieces = Mapping[str, Sequence[fx.Node]]


def _pieces(traced: Exported) -> Pieces:
    """The operations of each module, where nothing runs between them; it does where a module is called twice."""
    operations = (n for n in traced.graph.nodes if n.op in ("call_function", "call_module"))
    nodes = [node for node in operations if node.meta["number"] is None]
    inside: dict[str, list[int]] = {}
    for place, node in enumerate(nodes):
        for path in node.meta["scope"]:
            inside.setdefault(path, []).append(place)
    return {
        path: nodes[places[0] : places[-1] + 1]
        for path, places in inside.items()
        if places[-1] - places[0] + 1 == len(places)
    }


def _handed_on(traced: Traced, call: Call, pieces: Pieces) -> HandedOn | None:
    """What a call hands on if it is skipped; None: it is not clear."""
    found = [_sources(traced, call, output, pieces) for output in call.outputs]
    inputs = [sources[0] for sources in found if len(sources) == 1]
    changed = any(output not in call.inputs for output in call.outputs)
    if not (changed and len(inputs) == len(set(inputs)) == len(call.outputs)):
        return None
    places = tuple(call.places[call.inputs.index(node)] for node in inputs if call.places)
    return HandedOn(call.outputs, tuple(inputs), places, call.packed)


def _sources(traced: Traced, call: Call, output: fx.Node, pieces: Pieces) -> list[fx.Node]:
    """The inputs that reach an output."""
    if output in call.inputs:
        return [output]
    if output.meta["shape"] is None:
        return []
    if isinstance(traced, Exported):
        return addends(traced, pieces.get(call.path, ()), output, call.inputs)
    node = output
    if _passes(traced, node, ACTIVATIONS) or node.target in _RELUS:
        node = node.all_input_nodes[0]
    inputs = (n for n in dict.fromkeys(call.inputs) if n.op != "get_attr")
    alike = (n for n in inputs if n.meta["shape"] == output.meta["shape"])
    return [source for source in alike if _reaches(traced, node, source, call.path)]


aten = torch.ops.aten
_RELUS = frozenset({nn.functional.relu, "relu", "relu_"})
_IDENTITIES = frozenset({
    aten.dropout.default, aten.feature_dropout.default, aten.alias.default, aten.contiguous.default,
    aten.clone.default,
})  # fmt: skip


def _reaches(traced: Traced, node: fx.Node, source: fx.Node, block: str) -> bool:
    """Whether `source` is an addend of `node`, through operations in a block that change nothing."""
    open_nodes, seen = [(node, False)], set()
    while open_nodes:
        here, added = open_nodes.pop()
        if here is source and added:
            return True
        is_addition = here.target in ADDITIONS and bool(here.kwargs.get("alpha", 1) == 1)
        through = (
            is_addition
            or (here.op == "call_function" and function_key(here.target) in IDENTITY_FUNCTIONS)
            or _passes(traced, here, DROPOUTS)
        )
        if through and block in here.meta["scope"] and (here, added) not in seen:
            seen.add((here, added))
            open_nodes.extend((before, added or is_addition) for before in here.all_input_nodes)
    return False


def _passes(traced: Traced, node: fx.Node, kinds: tuple[type[nn.Module], ...]) -> bool:
    return node.op == "call_module" and isinstance(traced.module(node), kinds)
