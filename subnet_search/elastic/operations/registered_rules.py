"""How channels pass through what a user registered a rule for, in an exported graph."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from search_spaces.errors import InvalidInput
from subnet_search.elastic.custom import Passes, Rule, check_fits, told
from subnet_search.elastic.operations.combining_rules import aligned, elementwise
from subnet_search.elastic.operations.label_flow import LabelFlow, along_axis, name_of
from subnet_search.elastic.operations.labels import Factors
from subnet_search.elastic.registered import called_by, passed_axis


def by_registered_rule(flow: LabelFlow, node: fx.Node, rule: Rule) -> Factors | list[Factors]:
    """Applies the rule to a node that calls a module or an operator."""
    if not isinstance(rule, Passes):
        found: Factors | list[Factors] = rule(flow, node)
        return found
    operands = [n for n in node.all_input_nodes if n.meta["shape"] is not None]
    if node.meta["shape"] is None:
        for x in operands:
            flow.freeze(x, f"{name_of(node)} answers more than one tensor")
        return ()
    return _in_place(flow, node, operands, rule) if rule.axis is None else _along(flow, node, operands, rule)


def _in_place(flow: LabelFlow, node: fx.Node, operands: list[fx.Node], rule: Passes) -> Factors:
    """Each element becomes another one in its place."""
    shape = flow.shape(node)
    if not all(_spreads(flow.shape(x), shape) for x in operands):
        raise InvalidInput(
            f"by the rule registered for {told(called_by(node))}, {rule}, each element becomes another one in its "
            f"place, but {[list(flow.shape(x)) for x in operands]} becomes {list(shape)}; say the axis of the channels"
        )
    return elementwise(flow, [aligned(flow, x, len(shape)) for x in operands], name_of(node))


def _spreads(shape: tuple[int, ...], over: tuple[int, ...]) -> bool:
    """Whether a tensor of one shape can be combined element by element into one of another."""
    ends = zip(reversed(shape), reversed(over), strict=False)
    return len(shape) <= len(over) and all(a in (1, b) for a, b in ends)


def _along(flow: LabelFlow, node: fx.Node, operands: list[fx.Node], rule: Passes) -> Factors:
    """The channels of one axis pass; those along others are mixed."""
    assert rule.axis is not None
    found = [_ids(flow, node, x, rule.axis) for x in operands if rule.axis < len(flow.shape(x))]
    if len(found) < len(operands) or len({len(ids) for ids in found}) != 1:
        for x in operands:
            flow.freeze(x, f"{name_of(node)} takes tensors whose channels do not line up")
        return ()
    for ids in found[1:]:
        flow.channels.unite(found[0], ids)
    first: Any = operands[0]
    axis = passed_axis(node, rule, rule.axis % len(flow.shape(first)), len(found[0]))
    if node.op == "call_module":
        check_fits(flow.module(node), rule, len(found[0]))
        flow.read(node, found[0])
    return (along_axis(found[0], axis, len(flow.shape(node))),)


def _ids(flow: LabelFlow, node: fx.Node, x: fx.Node, axis: int) -> np.ndarray:
    """The channels along an axis of a tensor; those along others, and what is not along that one alone, stay whole."""
    reason = f"{name_of(node)} mixes the axis"
    for other in range(len(flow.shape(x))):
        if other != axis % len(flow.shape(x)):
            flow.factors[x] = flow.labels.restrict(flow.of(x), other, reason)
    return flow.ids_along(x, axis)[0]
