"""Follows the channels of every tensor through an exported graph, whatever the shapes."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from subnet_search.elastic.custom import rule_for
from subnet_search.elastic.flow import freeze_by_settings
from subnet_search.elastic.operations.exact_layers import lifted_kind
from subnet_search.elastic.operations.exported import Exported
from subnet_search.elastic.operations.label_flow import LabelFlow, arguments, name_of
from subnet_search.elastic.operations.labels import Factor, Factors, axes_of
from subnet_search.elastic.operations.layer_rules import LAYERS
from subnet_search.elastic.operations.operators import OPERATORS
from subnet_search.elastic.operations.registered_rules import by_registered_rule

FEW = 4  # so many positions are queries, keys and values, say, and no channels


def follow_exported(traced: Exported, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> LabelFlow:
    """Applies the rule of every operation in order.

    Args:
        traced: the graph with shapes.
        include: path patterns; if given, only layers that match one may change the width of their output.
        exclude: path patterns of layers that keep the width of their output.
    """
    flow = LabelFlow(traced)
    for node in traced.graph.nodes:
        found = _applied(flow, node)
        if found:
            flow.factors[node] = found
    _freeze_shared(flow)
    freeze_by_settings(flow.channels, flow.writes, include, exclude)
    make_dense(flow)
    return flow


def _freeze_shared(flow: LabelFlow) -> None:
    """A parameter that a layer and an operation outside of it use cannot be sliced in two ways."""
    for name, factors in flow.parameters.items():
        path = name.rpartition(".")[0]
        layers = [table[path] for table in (flow.reads, flow.writes) if path in table and _called(flow, path)]
        if layers:
            flow.labels.freeze(factors, f"{path} is used outside of its layer, too")
            for ids in layers:
                flow.channels.freeze(ids, "its parameter is used outside of it, too")
    for part in flow.traced.parts:
        _freeze_shared_with(flow, part)


def _freeze_shared_with(flow: LabelFlow, part: str) -> None:
    """What a part that is called as it is reads cannot be sliced elsewhere."""
    model, reason = flow.traced.model, f"it shares a parameter with {part}"
    inside = {id(p) for p in model.get_submodule(part).parameters()}
    shared = [name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in inside]
    for name in shared:
        flow.labels.freeze(flow.parameters.get(name, ()), reason)
        path = name.rpartition(".")[0]
        for table in (flow.reads, flow.writes):
            if path in table and path != part:
                flow.channels.freeze(table[path], reason)


def _called(flow: LabelFlow, path: str) -> bool:
    return any(n.op == "call_module" and str(n.target) == path for n in flow.nodes.get(path, ()))


def make_dense(flow: LabelFlow) -> None:
    """Couples channels until what is kept of every tensor is dense: each factor varies along one axis."""
    found = [*flow.factors.values(), *flow.parameters.values()]
    tensors = [factors for one in found for factors in ([one] if isinstance(one, tuple) else one)]
    changed = True
    while changed:
        changed = False
        for factors in tensors:
            taken: dict[int, Factor] = {}  # axis -> what varies along it
            for factor in map(flow.labels.roots, factors):
                axes = axes_of(factor)
                if len(axes) > 1:
                    keep = next((a for a in axes if factor.shape[a] > FEW), axes[0])
                    for axis in axes:
                        factor = factor if axis == keep else flow.labels.collapse(factor, axis)
                    changed, axes = True, (keep,)
                for axis in axes:
                    if not torch.equal(taken.setdefault(axis, factor), factor):
                        flow.labels.freeze([factor], "two kinds of channels lie along one axis")


def _applied(flow: LabelFlow, node: fx.Node) -> Factors | list[Factors]:
    if node.op == "output":
        for given in node.all_input_nodes:
            flow.freeze(given, "the network's output")
        return ()
    if node.op == "placeholder":
        return ()
    if node.op == "get_attr":
        return _parameter(flow, node)
    if node.op == "call_module" and str(node.target) in flow.traced.parts:
        return _part(flow, node)
    if node.op == "call_module":
        return LAYERS[lifted_kind(flow.module(node))](flow, node)  # type: ignore[index]
    if node.target is operator.getitem:
        source: Any = node.args[0]
        index: Any = node.args[1]
        found = flow.factors.get(source, ())
        return found[index] if isinstance(found, list) else ()
    if not any(flow.factors.get(n) for n in node.all_input_nodes):
        return ()
    own = rule_for(node.target)
    if own is not None:
        return by_registered_rule(flow, node, own)
    rule = OPERATORS.get(getattr(node.target, "overloadpacket", None))
    if rule is None:
        for given in node.all_input_nodes:
            flow.freeze(given, f"no rule for {name_of(node)}")
        return ()
    return rule(flow, node, arguments(node))


def _part(flow: LabelFlow, node: fx.Node) -> Factors | list[Factors]:
    """A module that is called as it is: by its rule, or all of every channel that it touches."""
    path, rule = str(node.target), rule_for(flow.module(node))
    if rule is not None and path not in flow.traced.opaque:
        return by_registered_rule(flow, node, rule)
    name = f"{path} ({type(flow.module(node)).__name__})"
    for given in node.all_input_nodes:
        flow.freeze(given, f"{name}: {flow.traced.opaque[path]}")
    return ()


def _parameter(flow: LabelFlow, node: fx.Node) -> Factors:
    """A parameter (or buffer of real numbers) has channels of its own along every axis, until united with others."""
    name, shape = str(node.target), flow.shape(node)
    if not node.meta["dtype"].is_floating_point:
        return ()
    if name not in flow.parameters:
        flow.parameters[name] = tuple(flow.fresh(s, a, len(shape)) for a, s in enumerate(shape) if s > 1)
        flow.nodes[name] = list(node.users)
    return flow.parameters[name]
