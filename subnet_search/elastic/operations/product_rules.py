"""How channels pass through products whose weight is no layer's own, or that have none: attention, einsum."""

from __future__ import annotations

import string
from typing import Any

from torch import fx

from subnet_search.elastic.grouped import couple_whole_groups
from subnet_search.elastic.operations.combining_rules import (
    aligned,
    elementwise,
)
from subnet_search.elastic.operations.contractions import Operand, contract
from subnet_search.elastic.operations.label_flow import (
    Given,
    LabelFlow,
    along_axis,
    at_one_row,
    name_of,
)
from subnet_search.elastic.operations.labels import Factors, axes_of


def _operand(flow: LabelFlow, value: Any, letters: str) -> Operand:
    return Operand(letters, flow.shape(value), flow.of(value))


def _batched_letters(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[str, str, str]:
    """Letters of a matrix product with broadcast batch axes: of both operands, and of what comes out."""
    batch = string.ascii_lowercase[: max(len(a), len(b), 2) - 2]
    left = batch[len(batch) - (len(a) - 2) :] if len(a) > 2 else ""
    right = batch[len(batch) - (len(b) - 2) :] if len(b) > 2 else ""
    rows, columns = "y" if len(a) > 1 else "", "z" if len(b) > 1 else ""
    return f"{left}{rows}x", f"{right}x{columns}", f"{batch}{rows}{columns}"


def matmul(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """A product of matrices or vectors, batched or not."""
    a, b = list(given.values())[:2]
    left, right, out = _batched_letters(flow.shape(a), flow.shape(b))
    return contract(flow.labels, [_operand(flow, a, left), _operand(flow, b, right)], out, name_of(node))


def linear(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """A linear map whose weight is no layer's own, or is computed."""
    x, weight, bias = given["input"], given["weight"], given["bias"]
    rank = len(flow.shape(node))
    letters = string.ascii_lowercase[: rank - 1]
    operands = [_operand(flow, x, f"{letters}x"), _operand(flow, weight, "yx")]
    out = contract(flow.labels, operands, f"{letters}y", name_of(node))
    _note_writer(flow, weight, out, rank - 1)
    return _with_bias(flow, node, out, bias, rank - 1)


def addmm(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """A product of matrices, added to another one."""
    out = contract(
        flow.labels,
        [_operand(flow, given["mat1"], "ax"), _operand(flow, given["mat2"], "xb")],
        "ab",
        name_of(node),
    )
    return elementwise(flow, [(flow.shape(node), out), aligned(flow, given["self"], 2)], name_of(node))


def _with_bias(flow: LabelFlow, node: fx.Node, out: Factors, bias: Any, axis: int) -> Factors:
    if bias is None:
        return out
    shape = [1] * len(flow.shape(node))
    shape[axis] = flow.shape(bias)[0]
    terms = [(flow.shape(node), out), (tuple(shape), tuple(f.reshape(shape) for f in flow.of(bias)))]
    return elementwise(flow, terms, name_of(node))


def _note_writer(flow: LabelFlow, weight: Any, out: Factors, axis: int) -> None:
    """Names the parameter that makes an output's channels, as a layer would be named."""
    name = _source_parameter(weight)
    factor = flow.labels.along(out, axis)
    if name is not None and factor is not None and axes_of(factor) == (axis,):
        path = name.rpartition(".")[0]
        path = path if path and path not in flow.writes else name
        flow.writes.setdefault(path, factor.flatten().numpy())
        flow.nodes.setdefault(path, flow.nodes[name])
        flow.weights.setdefault(path, name)


def _source_parameter(node: fx.Node) -> str | None:
    """The first parameter that a weight is computed from."""
    while node.op != "get_attr":
        if not node.all_input_nodes:
            return None
        node = node.all_input_nodes[0]
    return str(node.target)


def convolution(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """A convolution whose weight is no layer's own, or is computed."""
    x, weight, groups = given["input"], given["weight"], at_one_row(given["groups"])
    spatial = len(flow.shape(weight)) - 2
    factors = tuple(map(flow.labels.roots, flow.of(x)))
    rank = len(flow.shape(node))
    axis = rank - 1 - spatial
    for other in range(rank):
        if other != axis:
            factors = flow.labels.restrict(factors, other, f"{name_of(node)} mixes the axis")
    kernel = tuple(map(flow.labels.roots, flow.of(weight)))
    for other in range(2, len(flow.shape(weight))):
        kernel = flow.labels.restrict(kernel, other, "the size of a kernel")
    if groups == 1:
        batch = "b" if axis else ""
        space = string.ascii_lowercase[5 : 5 + spatial]
        taps = string.ascii_uppercase[:spatial]
        x_shape = tuple(1 if i > axis else s for i, s in enumerate(flow.shape(x)))
        out = contract(
            flow.labels,
            [Operand(f"{batch}x{space}", x_shape, factors), Operand(f"yx{taps}", flow.shape(weight), kernel)],
            f"{batch}y{space}",
            name_of(node),
        )
    else:
        kernel = flow.labels.restrict(kernel, 1, "the inputs of one group of a convolution")
        written = flow.labels.along(kernel, 0)
        read = flow.labels.along(factors, axis)
        if written is None or read is None:
            for f in (*kernel, *factors):
                flow.labels.freeze([f], f"{name_of(node)} in groups, of which one side is not elastic")
            return ()
        couple_whole_groups(flow.channels, read.flatten().numpy(), written.flatten().numpy(), groups)
        out = (along_axis(written.flatten().numpy(), axis, rank),)
    _note_writer(flow, weight, out, axis)
    return _with_bias(flow, node, out, given["bias"], axis)


def attention(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """softmax(Q K^T) V: what belongs to a head stands and falls together."""
    q, k, v, mask = (given[name] for name in ("query", "key", "value", "attn_mask"))
    rank = len(flow.shape(q))
    batch = string.ascii_lowercase[: rank - 2]
    labels = flow.labels
    scores = contract(
        labels, [_operand(flow, q, f"{batch}yx"), _operand(flow, k, f"{batch}zx")], f"{batch}yz", "attention"
    )
    shape = (*flow.shape(q)[:-1], flow.shape(k)[-2])
    if mask is not None:
        scores = elementwise(flow, [(shape, scores), aligned(flow, mask, rank)], "attention")
    return contract(
        labels,
        [Operand(f"{batch}yz", shape, scores), _operand(flow, v, f"{batch}zx")],
        f"{batch}yx",
        "attention",
    )


def einsum(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """Any product with one letter an axis; what takes a diagonal or has dots keeps all it touches."""
    equation: str = given["equation"].replace(" ", "")
    sides, _, out = equation.partition("->")
    if "..." in equation or not out or any(len(set(s)) < len(s) for s in sides.split(",")):
        for n in node.all_input_nodes:
            flow.freeze(n, f"einsum {equation}")
        return ()
    operands = [_operand(flow, v, s) for v, s in zip(given["tensors"], sides.split(","), strict=True)]
    return contract(flow.labels, operands, out, name_of(node))
