"""Batch norms folded into the convolutions before them, while a sub-net answers."""

from __future__ import annotations

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


class Fold(NamedTuple):
    """A convolution and the batch norm that alone reads what it gives, with their paths."""

    conv_path: str
    conv: ElasticConv
    norm_path: str
    norm: ElasticBatchNorm


def find_folds(model: nn.Module) -> list[Fold]:
    """The convolutions of an elastic model into which a batch norm can be folded; none where it cannot be traced."""
    try:
        graph = _LayerTracer().trace(model)
    except Exception:  # the user's forward cannot be followed, in one of many ways
        return []
    calls = [node for node in graph.nodes if node.op == "call_module"]
    paths = [str(node.target) for node in calls]
    found = []
    for node, path in zip(calls, paths, strict=True):
        norm = model.get_submodule(path)
        before = node.args[0] if node.args else None
        if not (is_batch_norm(norm) and isinstance(before, fx.Node) and before.op == "call_module"):
            continue
        conv_path = str(before.target)
        conv = model.get_submodule(conv_path)
        once = paths.count(path) == paths.count(conv_path) == len(before.users) == 1
        if once and isinstance(conv, ElasticConv):
            found.append(Fold(conv_path, conv, path, norm))
    return found


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
