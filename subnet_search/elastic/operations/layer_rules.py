"""How channels pass through the layers that exported operations were given back to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx, nn

from subnet_search.elastic.grouped import couple_groups
from subnet_search.elastic.operations.label_flow import LabelFlow, along_axis
from subnet_search.elastic.operations.labels import Factors


def _input_ids(flow: LabelFlow, node: fx.Node, axis: int) -> tuple[np.ndarray, Factors]:
    """What a layer reads along its channel axis: ids `[size]`, and the factors along other axes."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    ids, others = flow.ids_along(x, axis)
    flow.read(node, ids)
    return ids, others


def _output_ids(flow: LabelFlow, node: fx.Node, count: int) -> np.ndarray:
    path = str(node.target)
    if path not in flow.writes:
        flow.writes[path] = flow.channels.new(count)
    return flow.writes[path]


def _linear_layer(flow: LabelFlow, node: fx.Node) -> Factors:
    layer: Any = flow.module(node)
    _, others = _input_ids(flow, node, -1)
    rank = len(flow.shape(node))
    return (*others, along_axis(_output_ids(flow, node, layer.out_features), rank - 1, rank))


def _conv_layer(flow: LabelFlow, node: fx.Node) -> Factors:
    layer: Any = flow.module(node)
    ids, others = _input_ids(flow, node, _channel_axis(layer))
    for factor in others:
        flow.labels.freeze([factor], f"{node.target} mixes the axis")
    outputs = _output_ids(flow, node, layer.out_channels)
    couple_groups(flow.channels, ids, outputs, layer)
    rank = len(flow.shape(node))
    return (along_axis(outputs, rank + _channel_axis(layer), rank),)


def _channel_axis(conv: Any) -> int:
    """Counted from the end: a convolution takes tensors without a batch axis, too."""
    return -1 - len(conv.kernel_size)


def _batch_norm_layer(flow: LabelFlow, node: fx.Node) -> Factors:
    ids, others = _input_ids(flow, node, 1)
    for factor in others:
        flow.labels.freeze([factor], f"{node.target} normalises along the axis")
    return (along_axis(ids, 1, len(flow.shape(node))),)


def _layer_norm_layer(flow: LabelFlow, node: fx.Node) -> Factors:
    ids, others = _input_ids(flow, node, -1)
    rank = len(flow.shape(node))
    return (*others, along_axis(ids, rank - 1, rank))


def _group_norm_layer(flow: LabelFlow, node: fx.Node) -> Factors:
    layer: Any = flow.module(node)
    ids, _ = _input_ids(flow, node, 1)
    if layer.num_groups > 1:  # each group stands and falls as a whole
        for members in ids.reshape(layer.num_groups, -1):
            flow.channels.unite(members[:-1], members[1:])
    return (along_axis(ids, 1, len(flow.shape(node))),)


LAYERS: dict[type[nn.Module], Callable[[LabelFlow, fx.Node], Factors]] = {
    nn.Linear: _linear_layer,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _conv_layer),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm_layer),
    nn.LayerNorm: _layer_norm_layer,
    nn.GroupNorm: _group_norm_layer,
}
