"""Batch norms folded into the convolutions before them, while a sub-net answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from subnet_search.elastic.layers import (
    ElasticBatchNorm,
    ElasticConv,
    ElasticLayer,
    is_batch_norm,
    sliced_conv_weight,
    take,
)
from subnet_search.elastic.operations.graph_form import RunsGraph
from subnet_search.elastic.operations.program import Layer


class Fold(NamedTuple):
    """A convolution and the batch norm that alone reads what it gives, with their paths."""

    conv_path: str
    conv: ElasticConv
    norm_path: str
    norm: ElasticBatchNorm


def find_folds(model: nn.Module) -> list[Fold]:
    """The convolutions of an elastic model into which a batch norm can be folded; none where it cannot be traced."""
    calls = _calls_of_program(model) if isinstance(model, RunsGraph) else _calls_of_trace(model)
    times = Counter(call.path for call in calls)
    found: list[Fold] = []
    for path, before in calls:
        norm, conv = model.get_submodule(path), None if before is None else model.get_submodule(before)
        if before is not None and isinstance(conv, ElasticConv) and is_batch_norm(norm):
            found += [Fold(before, conv, path, norm)] if times[path] == times[before] == 1 else []
    return found


class _Call(NamedTuple):
    """A call of a layer, and the layer before it that nothing else reads."""

    path: str
    before: str | None


def _calls_of_trace(model: nn.Module) -> list[_Call]:
    try:
        graph = _LayerTracer().trace(model)
    except Exception:  # the user's forward cannot be followed, in one of many ways
        return []
    calls = []
    for node in graph.nodes:
        if node.op == "call_module":
            before = node.args[0] if node.args else None
            alone = isinstance(before, fx.Node) and before.op == "call_module" and len(before.users) == 1
            calls.append(_Call(str(node.target), str(before.target) if alone else None))  # type: ignore[union-attr]
    return calls


def _calls_of_program(model: RunsGraph) -> list[_Call]:
    program = model.graph_form.program
    uses = Counter(name for statement in program.statements for name in statement.uses)
    uses.update(
        (*program.answer_uses, *(name for bypass in program.bypasses.values() for name in bypass.given))
    )
    calls, made = [], dict[str, str]()  # by variable the layer that made it
    for statement in program.statements:
        for layer in (part for part in statement.parts if isinstance(part, Layer)):
            alone = [made.get(name) for name in statement.uses if uses[name] == 1]  # a layer reads one tensor
            calls.append(_Call(layer.path, alone[0] if alone else None))
            made[statement.name] = layer.path
    return calls


@contextmanager
def folded(folds: Sequence[Fold], dtype: torch.dtype | None = None) -> Iterator[None]:
    """Folds the statistics that are set into the active part of each convolution; the norms pass on what comes.

    Args:
        folds: those without statistics, such as of skipped blocks, stay as they are.
        dtype: of the folded weights; by default their own.
    """
    done = [fold for fold in folds if fold.norm.statistics is not None]
    try:
        for fold in done:
            fold.conv.folded = _weight_and_bias(fold, dtype)
            fold.norm.folded = True
        yield
    finally:
        for fold in done:
            fold.conv.folded, fold.norm.folded = None, False


class _LayerTracer(fx.Tracer):
    """Follows the forward down to elastic layers, through the blocks that may be skipped."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, ElasticLayer) or super().is_leaf_module(m, module_qualified_name)


def _weight_and_bias(fold: Fold, dtype: torch.dtype | None) -> tuple[Tensor, Tensor, int]:
    """The convolution's active weight and bias with the norm in them, and its number of groups."""
    conv: Any = fold.conv
    norm: Any = fold.norm
    mean, variance = norm.statistics  # [out] each
    weight, groups, bias = conv.weight, conv.groups, conv.bias
    if conv.active is not None:
        weight, groups = sliced_conv_weight(conv, conv.active)
        bias = None if bias is None else take(bias, 0, conv.active.outputs)
    kept = None if norm.active is None else norm.active.inputs
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * take(norm.weight, 0, kept)
    shift = -mean * scale if bias is None else (bias - mean) * scale
    if norm.bias is not None:
        shift = shift + take(norm.bias, 0, kept)
    weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    dtype = dtype or weight.dtype
    return weight.to(dtype).contiguous(), shift.to(dtype), groups
