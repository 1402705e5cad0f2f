"""Which rule holds for which operator of torch.

A rule takes the flow, the node and its arguments by name, and returns the factors of the output (a list of them for
several outputs). An operator without a rule keeps all of every channel that it touches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from subnet_search.elastic.operations.combining_rules import (
    batch_normalised,
    combined,
    concatenated,
    glu,
    normalised,
    nothing,
    padded,
    pooled,
    prelu,
    reduced,
    same,
    stacked,
)
from subnet_search.elastic.operations.exported import aten
from subnet_search.elastic.operations.label_flow import Rule
from subnet_search.elastic.operations.move_rules import expanded, indexed, moved, moved_elsewhere, reshaped
from subnet_search.elastic.operations.product_rules import (
    addmm,
    attention,
    convolution,
    einsum,
    linear,
    matmul,
)

UNARY = (
    "relu", "relu_", "gelu", "gelu_", "silu", "silu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "hardsigmoid",
    "hardsigmoid_", "hardswish", "hardswish_", "hardtanh", "hardtanh_", "leaky_relu", "leaky_relu_", "elu", "elu_",
    "selu", "selu_", "celu", "celu_", "mish", "mish_", "softplus", "softsign", "relu6", "relu6_", "log_sigmoid",
    "dropout", "dropout_", "feature_dropout", "alpha_dropout", "contiguous", "clone", "alias", "detach", "to",
    "_to_copy", "type_as", "lift_fresh_copy", "abs", "neg", "exp", "log", "sqrt", "rsqrt", "square", "sin", "cos",
    "erf", "clamp", "clamp_", "clamp_min", "clamp_min_", "clamp_max", "pow", "reciprocal", "rsub", "softmax",
    "_softmax", "log_softmax", "zeros_like", "ones_like", "full_like", "empty_like", "bitwise_not", "logical_not",
    "zero_", "fill_", "float", "half", "double", "bfloat16", "round", "floor", "ceil", "sign",
)  # fmt: skip
BINARY = (
    "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "maximum", "minimum", "where", "addcmul", "addcdiv",
    "masked_fill", "masked_fill_", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "lerp", "atan2",
    "fmod", "remainder", "prelu_like",
)  # fmt: skip
MOVES = (
    "permute", "transpose", "t", "squeeze", "unsqueeze", "select", "slice", "split", "split_with_sizes", "chunk",
    "unbind", "repeat", "tile", "repeat_interleave", "pixel_shuffle", "pixel_unshuffle", "index_select", "movedim",
    "swapaxes", "swapdims", "narrow", "im2col", "moveaxis", "numpy_T", "mT", "flip",
)  # fmt: skip
RESHAPES = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "reshape_as", "view_as")
EXPANSIONS = ("expand", "expand_as", "broadcast_to")
REDUCTIONS = (
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "linalg_vector_norm", "norm", "logsumexp", "prod", "all",
    "any",
)  # fmt: skip
POOLS = (
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bicubic2d_aa",
    "_upsample_bilinear2d_aa",
    "upsample_nearest1d", "upsample_linear1d", "reflection_pad2d", "replication_pad2d", "grid_sampler",
)  # fmt: skip


def _named(names: Sequence[str], rule: Rule) -> dict[Any, Rule]:
    return {getattr(aten, name): rule for name in names if hasattr(aten, name)}


OPERATORS: dict[Any, Rule] = {
    **_named(UNARY, same),
    **_named(BINARY, combined),
    **_named(MOVES, moved),
    **_named(("roll", "unfold"), moved_elsewhere),
    **_named(RESHAPES, reshaped),
    **_named(EXPANSIONS, expanded),
    **_named(REDUCTIONS, reduced),
    **_named(POOLS, pooled),
    **_named(("new_zeros", "new_ones", "new_full", "new_empty", "sym_size"), nothing),
    **_named(("matmul", "bmm", "mm"), matmul),
    **_named(("conv1d", "conv2d", "conv3d"), convolution),
    **_named(("layer_norm", "rms_norm"), normalised),
    aten.batch_norm: batch_normalised,
    aten.linear: linear,
    aten.addmm: addmm,
    aten.scaled_dot_product_attention: attention,
    aten.einsum: einsum,
    aten.glu: glu,
    aten.prelu: prelu,
    aten.instance_norm: batch_normalised,
    aten.cat: concatenated,
    aten.stack: stacked,
    aten.pad: padded,
    aten.constant_pad_nd: padded,
    aten.index: indexed,
}
