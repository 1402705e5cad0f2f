"""How channels pass through what a user registered a rule for, in the model's own classes."""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from search_spaces.errors import InvalidInput
from subnet_search.elastic.custom import Passes, Rule, check_fits, told
from subnet_search.elastic.flow import Flow, Layout


def by_registered_rule(flow: Flow, node: fx.Node, rule: Rule) -> Layout | None:
    """Applies the rule to a node that calls a module, function or operator."""
    if not isinstance(rule, Passes):
        found: Layout | None = rule(flow, node)
        return found
    operands = [n for n in node.all_input_nodes if math.prod(flow.shape_or_none(n) or ()) > 1]
    if flow.shape_or_none(node) is None:
        flow.freeze(operands, f"{node.name} answers more than one tensor")
        return None
    layouts = [_layout_of(flow, node, x, rule) for x in operands]
    first = next((layout for layout in layouts if layout is not None), None)
    if first is None:
        return None
    for x, layout in zip(operands, layouts, strict=True):
        if layout is None or layout.axis != first.axis or len(layout.ids) != len(first.ids):
            flow.freeze(
                operands, f"{node.name} takes {x.name}, whose channels do not line up with the others"
            )
            return None
        flow.channels.unite(first.ids, layout.ids)
    axis = passed_axis(node, rule, first.axis, len(first.ids))
    if node.op == "call_module" and rule.axis is not None:
        check_fits(flow.module(node), rule, len(first.ids))
        flow.read(node, first.ids)
    return Layout(axis, first.ids)


def _layout_of(flow: Flow, node: fx.Node, x: fx.Node, rule: Passes) -> Layout | None:
    known = flow.layouts.get(x)
    if known is None or rule.axis is None or known.axis == rule.axis % len(flow.shape(x)):
        return known
    flow.freeze([x], f"{node.name} works along the axis of the channels")
    return None


def passed_axis(node: fx.Node, rule: Passes, axis: int, count: int) -> int:
    """The axis of the channels in what comes out.

    Raises:
        InvalidInput: the rule says so, but so many channels do not come out.
    """
    shape: tuple[int, ...] = node.meta["shape"]
    axis = axis if rule.axis is None or rule.axis >= 0 else len(shape) + rule.axis
    if not 0 <= axis < len(shape) or shape[axis] != count:
        raise InvalidInput(
            f"by the rule registered for {told(called_by(node))}, {rule}, {count} channels pass along axis {axis}, but "
            f"what comes out has the shape {list(shape)}; mend the rule"
        )
    return axis


def called_by(node: fx.Node) -> Any:
    """The module, function or operator that a node calls."""
    if node.op != "call_module":
        return node.target
    assert node.graph.owning_module is not None
    return node.graph.owning_module.get_submodule(str(node.target))
