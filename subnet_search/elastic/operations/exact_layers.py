"""Whether an exported operation is exactly what a layer of the model computes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

aten = torch.ops.aten

LIFTED = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm,
    nn.GroupNorm,
)  # fmt: skip


def lifted_kind(layer: nn.Module) -> type[nn.Module] | None:
    """The plain kind of a layer that exported operations are given back to."""
    return next((kind for kind in LIFTED if isinstance(layer, kind)), None)


def plain_layer(layer: nn.Module) -> nn.Module:
    """A layer that computes only what the plain kind does, where a sub-class adds to it; the tensors are shared."""
    kind = lifted_kind(layer)
    if kind is None or type(layer) is kind:
        return layer
    plain = copy.copy(layer)
    plain.__class__ = kind
    return plain


def does(layer: nn.Module, path: str, node: fx.Node, copies: Mapping[fx.Node, fx.Node]) -> bool:
    """Whether an operation is what the plain kind of this layer computes."""
    target, schema = node.target, getattr(node.target, "_schema", None)
    if schema is None:
        return False
    given = dict(zip([a.name for a in schema.arguments], node.args, strict=False)) | dict(node.kwargs)
    given = {a.name: given.get(a.name, a.default_value) for a in schema.arguments}

    def holds(*names: str) -> bool:
        return all(_held(given[name], copies) == _own(layer, path, name) for name in names)

    if isinstance(layer, nn.Linear):
        return target is aten.linear.default and holds("weight", "bias")
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        wanted = {1: aten.conv1d, 2: aten.conv2d, 3: aten.conv3d}[len(layer.kernel_size)]
        return (
            target in (wanted.default, getattr(wanted, "padding", None))
            and holds("weight", "bias")
            and layer.padding_mode == "zeros"
            and given["groups"] == layer.groups
            and all(_same(given[name], getattr(layer, name)) for name in ("stride", "padding", "dilation"))
        )
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        return (
            target is aten.batch_norm.default
            and holds("weight", "bias", "running_mean", "running_var")
            and (given["training"], given["eps"]) == (layer.running_mean is None, layer.eps)
        )
    if isinstance(layer, nn.LayerNorm):
        return (
            target is aten.layer_norm.default
            and holds("weight", "bias")
            and (tuple(given["normalized_shape"]), given["eps"]) == (tuple(layer.normalized_shape), layer.eps)
            and len(layer.normalized_shape) == 1
        )
    if isinstance(layer, nn.GroupNorm):
        return (
            target is aten.group_norm.default
            and holds("weight", "bias")
            and (given["num_groups"], given["eps"]) == (layer.num_groups, layer.eps)
        )
    return False


def _held(value: Any, copies: Mapping[fx.Node, fx.Node]) -> str | None:
    return str(copies[value].target) if isinstance(value, fx.Node) else None


def _own(layer: nn.Module, path: str, name: str) -> str | None:
    return None if getattr(layer, name, None) is None else f"{path}.{name}"


def _same(given: Any, own: Any) -> bool:
    """Whether two ways to write a stride or padding mean the same: 1, (1,), (1, 1), "same"."""
    if isinstance(given, str) or isinstance(own, str):
        return bool(given == own)
    given, own = (tuple(v) if isinstance(v, Sequence) else (v,) for v in (given, own))
    return given == own or (len(given) == 1 and given * len(own) == own)
