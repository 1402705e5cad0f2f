"""One small rule per operator of torch: how channels pass through it, whatever the shapes.

The counterpart of `rules` for exported graphs. A rule takes the flow, the node and its arguments by name, and returns
the factors of the output (a list of them for several outputs). What only moves elements is run on the ids themselves.
An operator without a rule keeps all of every channel that it touches.
"""

from __future__ import annotations

import operator
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from subnet_search.elastic.channels import Channels
from subnet_search.elastic.contractions import Operand, contract, distinct
from subnet_search.elastic.exported import Exported, lifted_kind
from subnet_search.elastic.flow import matches
from subnet_search.elastic.labels import Factor, Factors, Labels, axes_of, compressed

aten = torch.ops.aten
FEW = 4  # so many positions are queries, keys and values, say, and no channels
Given = dict[str, Any]  # an operator's arguments by the names of its schema
Rule = Callable[["LabelFlow", fx.Node, Given], Factors | list[Factors]]


@dataclass
class LabelFlow:
    """What the rules found out about an exported graph.

    Attributes:
        traced: the graph.
        factors: of every node that carries channels; a list for several outputs.
        reads: channel ids `[size]` of each layer's input channels, by path.
        writes: the same of outputs; a parameter used as a weight without a layer of its own writes, too.
        parameters: factors of the parameters that no layer of ours slices, by name.
        nodes: the calls of each layer.
        weights: the parameter behind each writer that is no layer.
    """

    traced: Exported
    channels: Channels = field(default_factory=Channels)
    factors: dict[fx.Node, Factors | list[Factors]] = field(default_factory=dict)
    reads: dict[str, np.ndarray] = field(default_factory=dict)
    writes: dict[str, np.ndarray] = field(default_factory=dict)
    parameters: dict[str, Factors] = field(default_factory=dict)
    nodes: dict[str, list[fx.Node]] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.labels = Labels(self.channels)

    def of(self, value: Any) -> Factors:
        """Factors of a tensor argument."""
        found = self.factors.get(value, ()) if isinstance(value, fx.Node) else ()
        return found if isinstance(found, tuple) else ()

    def axes(self, node: fx.Node) -> list[tuple[int, np.ndarray]]:
        """The axes of the node's tensor that carry channels, each with the ids along it (once all is dense)."""
        found: dict[int, np.ndarray] = {}
        for factor in map(self.labels.roots, self.of(node)):
            for axis in axes_of(factor):  # of two kinds along one axis the second is fixed
                found.setdefault(axis, factor.flatten().numpy())
        return list(found.items())

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Shape of the node's tensor at batch 1."""
        shape: tuple[int, ...] = node.meta["shape"]
        return shape

    def module(self, node: fx.Node) -> nn.Module:
        """The layer that the node calls."""
        return self.traced.module(node)

    def fresh(self, size: int, axis: int, rank: int) -> Factor:
        """A factor of new channels along one axis."""
        return along_axis(self.channels.new(size), axis, rank)

    def freeze(self, node: Any, reason: str) -> None:
        """Keeps all channels of a tensor (or of several outputs)."""
        found = self.factors.get(node, ()) if isinstance(node, fx.Node) else ()
        for factors in [found] if isinstance(found, tuple) else found:
            self.labels.freeze(factors, reason)


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
    for path, ids in flow.writes.items():
        if matches(path, exclude):
            flow.channels.freeze(ids, "excluded by the settings")
        elif include and not matches(path, include):
            flow.channels.freeze(ids, "not among the paths to include")
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


def along_axis(ids: np.ndarray, axis: int, rank: int) -> Factor:
    """Ids `[size]` as a factor along one axis of a tensor."""
    shape = [1] * rank
    shape[axis] = len(ids)
    return torch.from_numpy(np.asarray(ids, dtype=np.int64)).reshape(shape)


def _applied(flow: LabelFlow, node: fx.Node) -> Factors | list[Factors]:
    if node.op == "output":
        for given in node.all_input_nodes:
            flow.freeze(given, "the network's output")
        return ()
    if node.op == "placeholder":
        return ()
    if node.op == "get_attr":
        return _parameter(flow, node)
    if node.op == "call_module":
        return _LAYERS[lifted_kind(flow.module(node))](flow, node)  # type: ignore[index]
    if node.target is operator.getitem:
        source: Any = node.args[0]
        index: Any = node.args[1]
        found = flow.factors.get(source, ())
        return found[index] if isinstance(found, list) else ()
    if not any(flow.factors.get(n) for n in node.all_input_nodes):
        return ()
    rule = OPERATORS.get(getattr(node.target, "overloadpacket", None))
    if rule is None:
        for given in node.all_input_nodes:
            flow.freeze(given, f"no rule for {_name(node)}")
        return ()
    return rule(flow, node, arguments(node))


def arguments(node: fx.Node) -> Given:
    """The arguments of an operator by name, with defaults."""
    schema = node.target._schema  # type: ignore[union-attr]
    given = {a.name: a.default_value for a in schema.arguments}
    given |= dict(zip([a.name for a in schema.arguments], node.args, strict=False))
    return given | dict(node.kwargs)


def at_one_row(number: Any) -> Any:
    """A number at batch 1, if it grows with the batch."""
    return number.meta["number"][0] if isinstance(number, fx.Node) else number


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "overloadpacket", node.target)).removeprefix("aten.")


def _parameter(flow: LabelFlow, node: fx.Node) -> Factors:
    """A parameter (or buffer of real numbers) has channels of its own along every axis, until united with others."""
    name, shape = str(node.target), flow.shape(node)
    if not node.meta["dtype"].is_floating_point:
        return ()
    if name not in flow.parameters:
        flow.parameters[name] = tuple(flow.fresh(s, a, len(shape)) for a, s in enumerate(shape) if s > 1)
        flow.nodes[name] = list(node.users)
    return flow.parameters[name]


# layers of the model ------------------------------------------------------------------------


def _input_ids(flow: LabelFlow, node: fx.Node, axis: int) -> tuple[np.ndarray, Factors]:
    """What a layer reads along its channel axis: ids `[size]`, and the factors along other axes."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    shape = flow.shape(x)
    axis %= len(shape)
    factors = tuple(map(flow.labels.roots, flow.of(x)))
    if any(f.shape[axis] > 1 and len(axes_of(f)) > 1 for f in factors):
        factors = flow.labels.restrict(factors, axis, "")
    others = tuple(f for f in factors if f.shape[axis] == 1)
    factor = flow.labels.along(factors, axis)
    if factor is None:
        ids = flow.channels.new(shape[axis])
        flow.channels.freeze(ids, f"what it reads is not elastic along that axis ({x.name})")
    else:
        ids = factor.flatten().numpy()
    path = str(node.target)
    flow.nodes.setdefault(path, []).append(node)
    if path in flow.reads:
        flow.channels.unite(flow.reads[path], ids)
    flow.reads[path] = ids
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
    couple_groups(flow, ids, outputs, layer.groups)
    rank = len(flow.shape(node))
    return (along_axis(outputs, rank + _channel_axis(layer), rank),)


def _channel_axis(conv: Any) -> int:
    """Counted from the end: a convolution takes tensors without a batch axis, too."""
    return -1 - len(conv.kernel_size)


def couple_groups(flow: LabelFlow, inputs: np.ndarray, outputs: np.ndarray, groups: int) -> None:
    """Each group of a grouped convolution stands and falls as a whole."""
    if groups > 1:
        for members_in, members_out in zip(inputs.reshape(groups, -1), outputs.reshape(groups, -1), strict=True):
            members = np.concatenate([members_in, members_out])
            flow.channels.unite(members[:-1], members[1:])


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


_LAYERS: dict[type[nn.Module], Callable[[LabelFlow, fx.Node], Factors]] = {
    nn.Linear: _linear_layer,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _conv_layer),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm_layer),
    nn.LayerNorm: _layer_norm_layer,
    nn.GroupNorm: _group_norm_layer,
}


# operators ----------------------------------------------------------------------------------


def _first(given: Given) -> Any:
    return next(iter(given.values()))


def _same(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    return flow.of(_first(given))


def _nothing(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """Reads no element, only a size or a type."""
    return ()


def _reshaped(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """The same elements in the same order, in other axes."""
    shape = flow.shape(_first(given))
    factors = (f.expand(shape).reshape(flow.shape(node)) for f in map(flow.labels.roots, flow.of(_first(given))))
    return tuple(f for f in map(compressed, factors) if axes_of(f))


def _expanded(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """The same elements again and again along other axes."""
    missing = len(flow.shape(node)) - len(flow.shape(_first(given)))
    return tuple(f.reshape((1,) * missing + tuple(f.shape)) for f in flow.of(_first(given)))


def _moved(flow: LabelFlow, node: fx.Node, given: Given) -> Factors | list[Factors]:
    """Runs an operator that only moves elements on the ids."""
    x = _first(given)
    results = [run_on(flow, node, f.expand(flow.shape(x))) for f in map(flow.labels.roots, flow.of(x))]
    if results and isinstance(results[0], list | tuple):
        return [tuple(f for f in map(compressed, parts) if axes_of(f)) for parts in zip(*results, strict=True)]
    return tuple(f for f in map(compressed, results) if axes_of(f))


def run_on(flow: LabelFlow, node: fx.Node, ids: Tensor) -> Any:
    """The operator's own result for other elements in its first argument."""

    def value(n: fx.Node) -> Any:
        if n is node.args[0]:
            return ids
        return n.meta["number"][0] if n.meta["number"] is not None else flow.traced.value(n)

    args, kwargs = fx.map_arg((node.args, node.kwargs), value)
    run: Any = node.target
    return run(ids.double(), *args[1:], **kwargs).round().long() if run in _FLOATING else run(*args, **kwargs)


_FLOATING = (aten.im2col.default, aten.pixel_shuffle.default, aten.pixel_unshuffle.default)


def _moved_elsewhere(flow: LabelFlow, node: fx.Node, given: Given) -> Factors | list[Factors]:
    """Moves that cannot be told of fewer positions along their own axes: these keep all they have."""
    x = _first(given)
    dims: Any = given.get("dims", given.get("dimension"))
    axes = dims if isinstance(dims, list | tuple) else [dims]
    return _on_other_axes(flow, node, given, [d % len(flow.shape(x)) for d in axes])


def _on_other_axes(flow: LabelFlow, node: fx.Node, given: Given, axes: Sequence[int]) -> Factors | list[Factors]:
    x = _first(given)
    factors = flow.of(x)
    for axis in axes:
        factors = flow.labels.restrict(factors, axis, f"{_name(node)} along the axis")
    flow.factors[x] = factors
    return _moved(flow, node, given)


def _indexed(flow: LabelFlow, node: fx.Node, given: Given) -> Factors | list[Factors]:
    """Indexing by constant tensors only moves; a channel axis can be indexed by a list of positions."""
    x, indices = given["self"], given["indices"]
    if not all(i is None or flow.traced.is_constant(i) for i in indices):
        flow.freeze(x, f"{_name(node)} is told by a computed tensor")
        return ()
    told = [axis for axis, i in enumerate(indices) if i is not None]
    if len(told) == 1 and len(flow.shape(indices[told[0]])) == 1:
        return _moved(flow, node, given)
    return _on_other_axes(flow, node, given, told)


def _padded(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """New positions along an axis with channels are in every sub-net."""
    x, pad, rank = given["self"], given["pad"], len(flow.shape(node))
    result = []
    for factor in map(flow.labels.roots, flow.of(x)):
        for i in range(len(pad) // 2):
            axis, before, after = rank - 1 - i, pad[2 * i], pad[2 * i + 1]
            if factor.shape[axis] == 1 or (before, after) == (0, 0):
                continue
            if given.get("mode", "constant") != "constant" or before < 0 or after < 0:
                flow.labels.freeze([factor], f"{_name(node)} along the axis of the channels")
            if min(before, after) >= 0:
                ends = [list(factor.shape), list(factor.shape)]
                ends[0][axis], ends[1][axis] = before, after
                parts = []
                for end in ends:
                    ids = flow.channels.new(int(np.prod(end)))
                    flow.channels.freeze(ids, "padding")
                    parts.append(torch.from_numpy(ids).reshape(end))
                factor = torch.cat([parts[0], factor, parts[1]], dim=axis)
            else:
                factor = torch.nn.functional.pad(factor, [0, 0] * i + [before, after])
        result.append(factor)
    return tuple(result)


def _aligned(flow: LabelFlow, value: Any, rank: int) -> tuple[tuple[int, ...], Factors]:
    """Shape and factors of an operand, as broadcasting sees them."""
    shape = flow.shape(value)
    missing = rank - len(shape)
    return (1,) * missing + shape, tuple(f.reshape((1,) * missing + tuple(f.shape)) for f in flow.of(value))


def _elementwise(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """Tensors that are combined element by element keep the same positions."""
    operands = [v for v in given.values() if isinstance(v, fx.Node) and v.meta["shape"] is not None]
    return elementwise(flow, [_aligned(flow, v, len(flow.shape(node))) for v in operands], _name(node))


def elementwise(
    flow: LabelFlow, operands: Sequence[tuple[tuple[int, ...], Factors]], what: str
) -> Factors:
    """Factors of what comes of combining aligned tensors.

    A factor over several axes that meets one over a single axis keeps the freedom of its outermost axis (heads).
    """
    labels, rank = flow.labels, len(operands[0][0])
    held = [list(map(labels.roots, factors)) for _, factors in operands]
    reason = f"{what} combines it with what is not elastic"
    for axis in range(rank):
        carriers = [i for i, (shape, _) in enumerate(operands) if shape[axis] > 1]
        varying = [(i, f) for i in carriers for f in held[i] if f.shape[axis] > 1]
        if not varying or len(carriers) == 1:
            continue
        outermost = all(min(axes_of(f)) == axis for _, f in varying)
        shapes = {axes_of(f) for _, f in varying}
        if len({i for i, _ in varying}) < len(carriers) or (len(shapes) > 1 and not outermost):
            for i in carriers:
                held[i] = list(labels.restrict(tuple(held[i]), axis, reason))
        else:
            for (_, first), (_, second) in zip(varying, varying[1:], strict=False):
                labels.unite(first, second)
            held = [[labels.roots(f) for f in factors] for factors in held]
    return distinct(labels, [f for factors in held for f in factors])


def _concatenated(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """Along the axis positions stand beside each other; along the others all parts keep the same."""
    parts, rank = [p for p in given["tensors"] if np.prod(flow.shape(p))], len(flow.shape(node))
    axis = given["dim"] % rank
    along = [[f for f in map(flow.labels.roots, flow.of(p)) if f.shape[axis] > 1] for p in parts]
    across = [
        (tuple(1 if a == axis else s for a, s in enumerate(flow.shape(p))),
         tuple(f for f in map(flow.labels.roots, flow.of(p)) if f.shape[axis] == 1))
        for p in parts
    ]
    found: Factors = elementwise(flow, across, _name(node)) if any(f for _, f in across) else ()
    if not any(along):
        return found
    columns = []
    for part, factors in zip(parts, along, strict=True):
        size = flow.shape(part)[axis]
        factors = [f if axes_of(f) == (axis,) else None for f in factors]  # type: ignore[misc]
        if len(factors) == 1 and factors[0] is not None:
            columns.append(factors[0].flatten())
        else:
            for f in along[parts.index(part)]:
                flow.labels.freeze([f], f"{_name(node)} of tensors whose channels do not line up")
            ids = flow.channels.new(size)
            flow.channels.freeze(ids, "it is concatenated with what is elastic")
            columns.append(torch.from_numpy(ids))
    return (*found, along_axis(torch.cat(columns).numpy(), axis, rank))


def _stacked(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """All parts keep the same positions."""
    rank = len(flow.shape(node))
    axis = given["dim"] % rank
    found = elementwise(flow, [(flow.shape(p), flow.of(p)) for p in given["tensors"]], _name(node))
    return tuple(f.unsqueeze(axis) for f in found)


def _glu(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """The first half of an axis gated by the second: both keep the same positions."""
    x, half = given["self"], flow.shape(node)[given["dim"]]
    axis = given["dim"] % len(flow.shape(x))
    halves = (
        tuple(f if f.shape[axis] == 1 else compressed(f.narrow(axis, start, half)) for f in flow.of(x))
        for start in (0, half)
    )
    return elementwise(flow, [(flow.shape(node), factors) for factors in halves], _name(node))


def _reduced(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """Sums, means, norms, extrema over axes; over channels, sub-nets reduce over those they keep."""
    x = _first(given)
    rank, dims = len(flow.shape(x)), given.get("dim")
    axes = {d % rank for d in ([dims] if isinstance(dims, int) else dims or range(rank))}
    found = []
    for factor in map(flow.labels.roots, flow.of(x)):
        for axis in axes:
            factor = flow.labels.collapse(factor, axis) if len(axes_of(factor)) > 1 else factor
        if set(axes_of(factor)) <= axes:
            continue
        found.append(factor if given.get("keepdim") else factor.squeeze(tuple(axes)))
    result = tuple(found)
    return [result, result] if node.meta["shape"] is None else result  # type: ignore[return-value]


def _normalised(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """Layer norm and its kin without a layer of ours: over the last axes, with parameters along them."""
    x, rank = _first(given), len(flow.shape(node))
    operands = [_aligned(flow, v, rank) for v in (x, given.get("weight"), given.get("bias")) if v is not None]
    return elementwise(flow, operands, _name(node))


def _batch_normalised(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """Batch norm without a layer of ours, of weights say."""
    x, rank = given["input"], len(flow.shape(node))
    vectors = [given[n] for n in ("weight", "bias", "running_mean", "running_var") if given[n] is not None]
    operands = [_aligned(flow, x, rank)]
    for vector in vectors:
        shape = [1, flow.shape(vector)[0], *[1] * (rank - 2)]
        operands.append((tuple(shape), tuple(f.reshape(shape) for f in flow.of(vector))))
    return elementwise(flow, operands, _name(node))


def _prelu(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """Its slopes lie along the second axis."""
    rank, slopes = len(flow.shape(node)), given["weight"]
    shape = tuple(flow.shape(slopes)[0] if axis == 1 else 1 for axis in range(rank))
    operands = [_aligned(flow, given["self"], rank), (shape, tuple(f.reshape(shape) for f in flow.of(slopes)))]
    return elementwise(flow, operands, _name(node))


def _pooled(flow: LabelFlow, node: fx.Node, given: Given) -> Factors | list[Factors]:
    """What works on the last axes, whose positions it mixes: pooling, resizing."""
    x = _first(given)
    start = 2 if len(flow.shape(x)) > 3 or "1d" in _name(node) else 1
    factors = tuple(map(flow.labels.roots, flow.of(x)))
    for axis in range(start, len(flow.shape(x))):
        factors = flow.labels.restrict(factors, axis, f"{_name(node)} mixes the axis")
    return [factors, factors] if node.meta["shape"] is None else factors


def _operand(flow: LabelFlow, value: Any, letters: str) -> Operand:
    return Operand(letters, flow.shape(value), flow.of(value))


def _batched_letters(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[str, str, str]:
    """Letters of a matrix product with broadcast batch axes: of both operands, and of what comes out."""
    batch = string.ascii_lowercase[: max(len(a), len(b), 2) - 2]
    left = batch[len(batch) - (len(a) - 2) :] if len(a) > 2 else ""
    right = batch[len(batch) - (len(b) - 2) :] if len(b) > 2 else ""
    rows, columns = "y" if len(a) > 1 else "", "z" if len(b) > 1 else ""
    return f"{left}{rows}x", f"{right}x{columns}", f"{batch}{rows}{columns}"


def _matmul(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    a, b = list(given.values())[:2]
    left, right, out = _batched_letters(flow.shape(a), flow.shape(b))
    return contract(flow.labels, [_operand(flow, a, left), _operand(flow, b, right)], out, _name(node))


def _linear(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """A linear map whose weight is no layer's own, or is computed."""
    x, weight, bias = given["input"], given["weight"], given["bias"]
    rank = len(flow.shape(node))
    letters = string.ascii_lowercase[: rank - 1]
    operands = [_operand(flow, x, f"{letters}x"), _operand(flow, weight, "yx")]
    out = contract(flow.labels, operands, f"{letters}y", _name(node))
    _note_writer(flow, weight, out, rank - 1)
    return _with_bias(flow, node, out, bias, rank - 1)


def _addmm(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    out = contract(
        flow.labels,
        [_operand(flow, given["mat1"], "ax"), _operand(flow, given["mat2"], "xb")],
        "ab",
        _name(node),
    )
    return elementwise(flow, [(flow.shape(node), out), _aligned(flow, given["self"], 2)], _name(node))


def _with_bias(flow: LabelFlow, node: fx.Node, out: Factors, bias: Any, axis: int) -> Factors:
    if bias is None:
        return out
    shape = [1] * len(flow.shape(node))
    shape[axis] = flow.shape(bias)[0]
    terms = [(flow.shape(node), out), (tuple(shape), tuple(f.reshape(shape) for f in flow.of(bias)))]
    return elementwise(flow, terms, _name(node))


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


def _convolution(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """A convolution whose weight is no layer's own, or is computed."""
    x, weight, groups = given["input"], given["weight"], at_one_row(given["groups"])
    spatial = len(flow.shape(weight)) - 2
    factors = tuple(map(flow.labels.roots, flow.of(x)))
    rank = len(flow.shape(node))
    axis = rank - 1 - spatial
    for other in range(rank):
        if other != axis:
            factors = flow.labels.restrict(factors, other, f"{_name(node)} mixes the axis")
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
            _name(node),
        )
    else:
        kernel = flow.labels.restrict(kernel, 1, "the inputs of one group of a convolution")
        written = flow.labels.along(kernel, 0)
        read = flow.labels.along(factors, axis)
        if written is None or read is None:
            for f in (*kernel, *factors):
                flow.labels.freeze([f], f"{_name(node)} in groups, of which one side is not elastic")
            return ()
        couple_groups(flow, read.flatten().numpy(), written.flatten().numpy(), groups)
        out = (along_axis(written.flatten().numpy(), axis, rank),)
    _note_writer(flow, weight, out, axis)
    return _with_bias(flow, node, out, given["bias"], axis)


def _attention(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    """softmax(Q K^T) V: what belongs to a head stands and falls together."""
    q, k, v, mask = (given[name] for name in ("query", "key", "value", "attn_mask"))
    rank = len(flow.shape(q))
    batch = string.ascii_lowercase[: rank - 2]
    labels = flow.labels
    scores = contract(labels, [_operand(flow, q, f"{batch}yx"), _operand(flow, k, f"{batch}zx")], f"{batch}yz", "attention")
    shape = (*flow.shape(q)[:-1], flow.shape(k)[-2])
    if mask is not None:
        scores = elementwise(flow, [(shape, scores), _aligned(flow, mask, rank)], "attention")
    return contract(labels, [Operand(f"{batch}yz", shape, scores), _operand(flow, v, f"{batch}zx")], f"{batch}yx", "attention")


def _einsum(flow: LabelFlow, node: fx.Node, given: Given) -> Factors:
    equation: str = given["equation"].replace(" ", "")
    sides, _, out = equation.partition("->")
    if "..." in equation or not out or any(len(set(s)) < len(s) for s in sides.split(",")):
        for n in node.all_input_nodes:
            flow.freeze(n, f"einsum {equation}")
        return ()
    operands = [_operand(flow, v, s) for v, s in zip(given["tensors"], sides.split(","), strict=True)]
    return contract(flow.labels, operands, out, _name(node))


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
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "linalg_vector_norm", "norm", "logsumexp", "prod", "all", "any",
)  # fmt: skip
POOLS = (
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa",
    "upsample_nearest1d", "upsample_linear1d", "reflection_pad2d", "replication_pad2d", "grid_sampler",
)  # fmt: skip


def _named(names: Sequence[str], rule: Rule) -> dict[Any, Rule]:
    return {getattr(aten, name): rule for name in names if hasattr(aten, name)}


OPERATORS: dict[Any, Rule] = {
    **_named(UNARY, _same),
    **_named(BINARY, _elementwise),
    **_named(MOVES, _moved),
    **_named(("roll", "unfold"), _moved_elsewhere),
    **_named(RESHAPES, _reshaped),
    **_named(EXPANSIONS, _expanded),
    **_named(REDUCTIONS, _reduced),
    **_named(POOLS, _pooled),
    **_named(("new_zeros", "new_ones", "new_full", "new_empty", "sym_size"), _nothing),
    **_named(("matmul", "bmm", "mm"), _matmul),
    **_named(("conv1d", "conv2d", "conv3d"), _convolution),
    **_named(("layer_norm", "rms_norm"), _normalised),
    aten.batch_norm: _batch_normalised,
    aten.linear: _linear,
    aten.addmm: _addmm,
    aten.scaled_dot_product_attention: _attention,
    aten.einsum: _einsum,
    aten.glu: _glu,
    aten.prelu: _prelu,
    aten.instance_norm: _batch_normalised,
    aten.cat: _concatenated,
    aten.stack: _stacked,
    aten.pad: _padded,
    aten.constant_pad_nd: _padded,
    aten.index: _indexed,
}
