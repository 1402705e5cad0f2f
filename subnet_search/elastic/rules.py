"""One small rule per operator: how channels pass through it.

A rule takes the flow and a node and returns the layout of the node's output, or None where there is none.
What has no rule keeps the full width of everything it touches, and is listed with the reason.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from subnet_search.elastic.custom import rule_for, told
from subnet_search.elastic.flow import Flow, Layout, freeze_by_settings
from subnet_search.elastic.graph import Traced, plain_kind
from subnet_search.elastic.grouped import couple_groups
from subnet_search.elastic.padding import PaddedShortcut
from subnet_search.elastic.registered import by_registered_rule

Rule = Callable[[Flow, fx.Node], Layout | None]


def follow(traced: Traced, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Flow:
    """Applies the rule of every operation in order.

    Args:
        traced: the graph with shapes.
        include: path patterns; if given, only layers that match one may change the width of their output.
        exclude: path patterns of layers that keep the width of their output.
    """
    flow = Flow(traced)
    for node in traced.graph.nodes:
        layout = apply_rule(flow, node)
        if layout is not None:
            flow.layouts[node] = layout
    _freeze_shared_parameters(flow)
    freeze_by_settings(flow.channels, flow.writes, include, exclude)
    return flow


def apply_rule(flow: Flow, node: fx.Node) -> Layout | None:
    """Finds the rule of the node's operator and applies it."""
    if node.op == "output":
        flow.freeze(node.all_input_nodes, "the network's output")
        return None
    if node.op in ("placeholder", "get_attr"):
        return _fixed_source(flow, node)
    rule = rule_of(flow.traced, node)
    if rule is None:
        if flow.shape_or_none(node) is None and _asks_for_a_size(node):
            return None
        return _unknown(flow, node)
    return rule(flow, node)


def rule_of(traced: Traced, node: fx.Node) -> Rule | None:
    """The rule for a node that calls something, or None for an operator we do not know; the user's own come first."""
    target = traced.module(node) if node.op == "call_module" else node.target
    own = rule_for(target)
    if own is not None and str(node.target) not in traced.opaque:
        return functools.partial(by_registered_rule, rule=own)
    if node.op == "call_module":
        module = traced.module(node)
        if str(node.target) in traced.opaque or foreign_tensors(module):
            return None
        return MODULE_RULES.get(plain_kind(module))
    if node.op == "call_method":
        return METHOD_RULES.get(str(node.target))
    return FUNCTION_RULES.get(function_key(node.target))


def with_rules(traced: Traced) -> list[str]:
    """What the user registered rules for and the graph calls, for people."""
    calls = (n for n in traced.graph.nodes if n.op in ("call_module", "call_function"))
    targets = (traced.module(n) if n.op == "call_module" else n.target for n in calls)
    return list(dict.fromkeys(told(target) for target in targets if rule_for(target) is not None))


def foreign_tensors(module: nn.Module) -> list[str]:
    """What sets a layer apart from torch's own: its weight is computed from others (weight norm, masks)."""
    if not isinstance(module, (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)):
        return []
    own, usual = [*module._parameters, *module._buffers], ("weight", "bias")
    known = {*usual, "running_mean", "running_var", "num_batches_tracked"}
    return [n for n in own if n not in known] + [f"a computed {n}" for n in usual if n not in own]


def function_key(target: Any) -> Any:
    """Functions of optional packages are known by name, so that we need not import these packages."""
    name = f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', '')}"
    return name if name in FUNCTION_RULES else target


def _asks_for_a_size(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in {"size", "dim", "numel", "ndimension"}
    return node.target in {getattr, operator.getitem} or not any(True for _ in node.all_input_nodes)


def _freeze_shared_parameters(flow: Flow) -> None:
    """A parameter held by two modules cannot be sliced in two ways."""
    holders: dict[int, str] = {}
    for path, module in flow.traced.model.named_modules():  # a module met twice is listed once
        for parameter in module.parameters(recurse=False):
            other = holders.setdefault(id(parameter), path)
            if other == path:
                continue
            for mine, theirs in ((path, other), (other, path)):
                for ids in (flow.reads.get(mine), flow.writes.get(mine)):
                    if ids is not None:
                        flow.channels.freeze(ids, f"it shares a parameter with {theirs}")


def _fixed_source(flow: Flow, node: fx.Node) -> Layout | None:
    shape = flow.shape_or_none(node)
    if shape is None or len(shape) < 2:
        return None
    ids = flow.channels.new(shape[1])
    what = "the network's input" if node.op == "placeholder" else f"the parameter {node.target}"
    flow.channels.freeze(ids, f"coupled with {what}")
    return Layout(1, ids)


def _unknown(flow: Flow, node: fx.Node) -> Layout | None:
    name = _operator_name(flow, node)
    opaque = flow.traced.opaque.get(str(node.target)) if node.op == "call_module" else None
    flow.freeze(node.all_input_nodes, f"{name}: {opaque}" if opaque else f"no rule for {name}")
    return None


def _operator_name(flow: Flow, node: fx.Node) -> str:
    if node.op == "call_module":
        foreign = foreign_tensors(flow.module(node))
        note = f" with {', '.join(foreign)}" if foreign else ""
        return f"{node.target} ({type(flow.module(node)).__name__}{note})"
    return f"{getattr(node.target, '__name__', node.target)}"


def _convolution(flow: Flow, node: fx.Node) -> Layout:
    conv: Any = flow.module(node)
    inputs = flow.layout(first_input(node), axis=1).ids
    outputs = flow.write(node, conv.out_channels)
    flow.read(node, inputs)
    couple_groups(flow.channels, inputs, outputs, conv)
    return Layout(1, outputs)


def _linear(flow: Flow, node: fx.Node) -> Layout:
    linear: Any = flow.module(node)
    axis = len(flow.shape(node)) - 1
    flow.read(node, flow.layout(first_input(node), axis).ids)
    return Layout(axis, flow.write(node, linear.out_features))


def _per_channel(flow: Flow, node: fx.Node) -> Layout:
    layout = flow.layout(first_input(node), axis=1)
    flow.read(node, layout.ids)
    return layout


def _padded_shortcut(flow: Flow, node: fx.Node) -> Layout:
    shortcut: Any = flow.module(node)
    flow.read(node, flow.layout(first_input(node), axis=1).ids)
    return Layout(1, flow.write(node, shortcut.out_channels))


def _prelu(flow: Flow, node: fx.Node) -> Layout | None:
    prelu: Any = flow.module(node)
    return _same(flow, node) if prelu.num_parameters == 1 else _unknown(flow, node)


def _same(flow: Flow, node: fx.Node) -> Layout | None:
    return flow.layouts.get(first_input(node))


def _pool(flow: Flow, node: fx.Node) -> Layout | None:
    """What works on the axes after the channels: pooling, padding, resizing."""
    layout = flow.layouts.get(first_input(node))
    if layout is not None and layout.axis != 1:
        flow.freeze([first_input(node)], f"{node.name} works along the axis of the channels")
        return None
    return layout


def _elementwise(flow: Flow, node: fx.Node) -> Layout | None:
    operands = [n for n in node.all_input_nodes if math.prod(flow.shape_or_none(n) or ()) > 1]
    layouts = [flow.layouts.get(n) for n in operands]
    if len(operands) == 1 and operands[0] in flow.layouts:
        return flow.layouts[operands[0]]
    first = max((layout for layout in layouts if layout), key=lambda a: len(a.ids), default=None)
    alike = first is not None and all(
        layout is not None
        and layout.axis == first.axis
        and len(flow.shape(n)) == len(flow.shape(node))
        and len(layout.ids) in (1, len(first.ids))
        for n, layout in zip(operands, layouts, strict=True)
    )
    if first is None or not alike:
        flow.freeze(operands, f"{node.name} combines tensors whose channels do not line up")
        return None
    for layout in layouts:
        if layout is not None and len(layout.ids) == len(first.ids):
            flow.channels.unite(first.ids, layout.ids)
        elif layout is not None:
            flow.channels.freeze(layout.ids, "a single channel, spread over all others")
    return first


def _flatten(flow: Flow, node: fx.Node) -> Layout | None:
    """Flatten, view and reshape of what follows the channels, or of everything but the batch."""
    x = first_input(node)
    before, after, layout = flow.shape(x), flow.shape(node), flow.layouts.get(x)
    if layout is None or before == after:
        return layout
    if any(isinstance(size, int) and size > 1 for size in _sizes(node)):
        flow.freeze([x], f"{node.name} has a hard-coded size")
        return None
    if before[: layout.axis + 1] == after[: layout.axis + 1]:
        return layout
    if layout.axis == 1 and after == (before[0], math.prod(before[1:])):
        return Layout(1, np.repeat(layout.ids, math.prod(before[2:])))
    flow.freeze([x], f"{node.name} reshapes {before} to {after}")
    return None


def _sizes(node: fx.Node) -> tuple[Any, ...]:
    """The sizes that a view or reshape was given; flatten has none."""
    if node.op == "call_module" or node.target in {"flatten", torch.flatten}:
        return ()
    sizes = node.args[1:]
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else tuple(sizes)


def _concatenation(flow: Flow, node: fx.Node) -> Layout | None:
    parts: Any = node.args[0] if node.args else node.kwargs["tensors"]
    if isinstance(parts, fx.Node):
        return _unknown(flow, node)
    axis: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    axis %= len(flow.shape(node))
    layouts = [flow.layouts.get(part) for part in parts]
    if any(layout is None or layout.axis != axis for layout in layouts):
        flow.freeze(list(parts), f"{node.name} concatenates tensors along another axis than channels")
        return None
    return Layout(axis, np.concatenate([layout.ids for layout in layouts if layout is not None]))


def _reduction(flow: Flow, node: fx.Node) -> Layout | None:
    x = first_input(node)
    layout = flow.layouts.get(x)
    given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    rank = len(flow.shape(x))
    dims = {d % rank for d in ([given] if isinstance(given, int) else given or range(rank))}
    if layout is None or layout.axis in dims:
        flow.freeze([x], f"{node.name} reduces over channels")
        return None
    if len(flow.shape(node)) == rank:
        return layout
    return Layout(layout.axis - sum(d < layout.axis for d in dims), layout.ids)


def _index(flow: Flow, node: fx.Node) -> Layout | None:
    index: Any
    x, index = node.args
    if not isinstance(x, fx.Node) or x not in flow.layouts:
        return None
    layout, rank = flow.layouts[x], len(flow.shape(x))
    slices = isinstance(index, tuple) and len(index) <= rank and all(isinstance(i, slice) for i in index)
    if slices and (layout.axis >= len(index) or index[layout.axis] == slice(None)):
        return layout
    flow.freeze([x], f"{node.name} indexes channels")
    return None


def first_input(node: fx.Node) -> fx.Node:
    """The tensor an operation works on."""
    value = node.args[0] if node.args else next(iter(node.kwargs.values()))
    if not isinstance(value, fx.Node):
        raise TypeError(f"{node.name} works on {value!r}, which is no tensor of the graph")
    return value


ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
    nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid,
)  # fmt: skip
DROPOUTS = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.LPPool2d, nn.Upsample, nn.ZeroPad2d, nn.ReflectionPad2d,
    nn.ReplicationPad2d,
)  # fmt: skip
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

MODULE_RULES: dict[type[nn.Module], Rule] = {
    **dict.fromkeys((*ACTIVATIONS, *DROPOUTS), _same),
    **dict.fromkeys(POOLS, _pool),
    **dict.fromkeys(NORMS, _per_channel),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    nn.Linear: _linear,
    nn.Flatten: _flatten,
    nn.PReLU: _prelu,
    PaddedShortcut: _padded_shortcut,
}

IDENTITY_FUNCTIONS: frozenset[Any] = frozenset(
    {
        F.dropout,
        F.dropout2d,
        F.alpha_dropout,
        torch.dropout,
        "torchvision.ops.stochastic_depth.stochastic_depth",
    }
)
ADDITIONS: frozenset[Any] = frozenset({operator.add, operator.iadd, torch.add, "add", "add_"})

FUNCTION_RULES: dict[Any, Rule] = {
    **dict.fromkeys(
        (
            *IDENTITY_FUNCTIONS, F.relu, torch.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish,
            F.hardswish, F.hardsigmoid, F.hardtanh, F.softplus, torch.sigmoid, F.sigmoid, torch.tanh, F.tanh,
            torch.clamp, torch.abs, torch.exp, torch.sqrt, operator.neg,
        ),
        _same,
    ),
    **dict.fromkeys(
        (
            *(a for a in ADDITIONS if not isinstance(a, str)), operator.mul, operator.imul, torch.mul, operator.sub,
            operator.isub, torch.sub, operator.truediv, operator.itruediv, torch.div, torch.maximum, torch.minimum,
        ),
        _elementwise,
    ),
    **dict.fromkeys(
        (F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate), _pool
    ),
    **dict.fromkeys((torch.flatten, torch.reshape), _flatten),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _concatenation),
    **dict.fromkeys((torch.mean, torch.sum, torch.amax, torch.amin), _reduction),
    operator.getitem: _index,
}  # fmt: skip

METHOD_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "relu",
            "relu_",
            "sigmoid",
            "sigmoid_",
            "tanh",
            "clamp",
            "clamp_",
            "contiguous",
            "clone",
            "float",
            "detach",
        ),
        _same,
    ),
    **dict.fromkeys(("add", "add_", "mul", "mul_", "sub", "sub_", "div", "div_"), _elementwise),
    **dict.fromkeys(("flatten", "view", "reshape"), _flatten),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduction),
}
