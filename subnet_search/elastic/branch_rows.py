"""Runs a traced network in branches row by row: what earlier rows computed is read and not computed again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from search_spaces import InvalidInput
from subnet_search.elastic.padding import PaddedShortcut
from subnet_search.elastic.rules import ACTIVATIONS, DROPOUTS
from subnet_search.elastic.triangular import TriangularConv2d, TriangularLinear

POOLS = tuple(
    kind for name, kind in vars(nn).items() if inspect.isclass(kind) and name.endswith(("Pool2d", "Pool1d"))
)
ONE_BY_ONE = (*ACTIVATIONS, *DROPOUTS, *POOLS, nn.Identity, nn.Flatten, nn.Upsample)
MIXING = (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.LocalResponseNorm)
Row = Callable[["Rows", int], Any]


class Step(NamedTuple):
    """One node of the graph: whether it has rows, and what computes it."""

    name: str
    split: bool
    run: Row
    module: nn.Module | None


def split_nodes(graph: fx.Graph, model: nn.Module) -> Iterator[fx.Node]:
    """Marks every node that has channels in groups, and yields these in order.

    Raises:
        InvalidInput: a layer that mixes the channels of all groups.
    """
    for node in graph.nodes:
        kinds = (nn.Conv2d, nn.Linear)
        makes = node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), kinds)
        node.meta["split"] = makes or any(is_split(before) for before in node.all_input_nodes)
        if not node.meta["split"] or node.op == "output":
            continue
        if node.op == "call_module":
            _check_kind(str(node.target), model.get_submodule(str(node.target)))
        yield node


def is_split(node: fx.Node) -> bool:
    """Whether `split_nodes` found channels in groups."""
    return bool(node.meta.get("split"))


def _check_kind(path: str, module: nn.Module) -> None:
    known = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d, PaddedShortcut, *ONE_BY_ONE)
    if not isinstance(module, known) or isinstance(module, MIXING):
        raise InvalidInput(
            f"{path} is a {type(module).__name__}, which may mix the channels of all groups; branches need "
            "convolutions, linear layers, batch norms, activations, pooling and additions"
        )


def compile_rows(body: fx.GraphModule, branches: int) -> list[Step]:
    """What computes each node of a traced body, for rows one after the other."""
    split: dict[str, bool] = {}
    steps: list[Step] = []
    for node in body.graph.nodes:
        if node.op == "output":
            steps.append(Step("output", True, _reference(node.args[0], split), None))
            continue
        module = body.get_submodule(str(node.target)) if node.op == "call_module" else None
        made = isinstance(module, TriangularConv2d | TriangularLinear)
        split[node.name] = made or any(split[before.name] for before in node.all_input_nodes)
        steps.append(Step(node.name, split[node.name], _row_of(node, module, split, branches, body), module))
    return steps


def _row_of(
    node: fx.Node, module: nn.Module | None, split: dict[str, bool], branches: int, body: fx.GraphModule
) -> Row:
    if node.op == "placeholder":
        return lambda rows, k: rows.x
    if node.op == "get_attr":
        return lambda rows, k: _attribute(body, str(node.target))
    args: Any = node.args
    kwargs: Any = node.kwargs
    if isinstance(module, TriangularConv2d | TriangularLinear):
        return _layer_row(module, args[0].name, split[args[0].name])
    if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and split[args[0].name]:
        return _norm_row(module, args[0].name, branches)
    if isinstance(module, PaddedShortcut):
        return _shortcut_row(module, args[0].name, branches)

    def run(rows: Rows, k: int) -> Any:
        given = fx.map_arg(args, lambda n: rows.value(n.name, split[n.name]))
        named = fx.map_arg(kwargs, lambda n: rows.value(n.name, split[n.name]))
        if module is not None:
            return module(*given, **named)
        if node.op == "call_method":
            return getattr(given[0], str(node.target))(*given[1:], **named)
        return node.target(*given, **named)  # type: ignore[operator]

    return run


def _reference(value: Any, split: dict[str, bool]) -> Row:
    return lambda rows, k: rows.value(value.name, split[value.name])


def _attribute(body: nn.Module, name: str) -> Any:
    path, _, leaf = name.rpartition(".")
    return getattr(body.get_submodule(path), leaf)


def _layer_row(layer: TriangularConv2d | TriangularLinear, source: str, split: bool) -> Row:
    own_alone = isinstance(layer, TriangularConv2d) and layer.groups > 1

    def run(rows: Rows, k: int) -> Tensor:
        x = rows.up_to_now(source) if split and not own_alone else rows.value(source, split)
        answer = layer.row(k, x)
        if rows.count:
            width = x.shape[1] if isinstance(layer, TriangularConv2d) else x.shape[-1]
            rows.macs += layer.row_macs(k, width, answer[0, 0].numel() if answer.ndim == 4 else 1)
        return answer

    return run


def _norm_row(norm: Any, source: str, branches: int) -> Row:
    part = norm.num_features // branches

    def run(rows: Rows, k: int) -> Tensor:
        kept = slice(k * part, (k + 1) * part)
        mean, variance, weight, bias = (
            None if tensor is None else tensor[kept]
            for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        return F.batch_norm(
            rows.value(source, True), mean, variance, weight, bias, mean is None, 0.0, norm.eps
        )

    return run


def _shortcut_row(shortcut: PaddedShortcut, source: str, branches: int) -> Row:
    thin = PaddedShortcut(
        shortcut.in_channels // branches, shortcut.out_channels // branches, shortcut.stride
    )

    def run(rows: Rows, k: int) -> Tensor:
        x: Tensor = rows.value(source, True)
        return thin.gather(x, thin.sources.to(x.device))

    return run


class Rows:
    """One input on its way through a network in branches.

    Args:
        steps: from `compile_rows`.
        x: the input.
        count: note multiply-adds.

    Attributes:
        macs: of the last row, for one input, if counted.
    """

    def __init__(self, steps: Sequence[Step], x: Tensor, *, count: bool = False) -> None:
        self.x, self.count, self.macs = x, count, 0
        self._steps, self._k = steps, -1
        self._values: dict[str, Any] = {}
        self._rows: dict[str, list[Tensor]] = {}

    def next_row(self) -> Tensor:
        """The features of the next group, `[B, part]`."""
        self._k += 1
        self.macs = 0
        for step in self._steps:
            if not step.split and self._k > 0:
                continue
            value = step.run(self, self._k)
            if step.name == "output":
                features: Tensor = value
                return features
            if step.split:
                self._rows.setdefault(step.name, []).append(value)
            else:
                self._values[step.name] = value
        raise AssertionError("a graph ends with its output")

    def value(self, name: str, split: bool) -> Any:
        """The present row of a node, or its only value."""
        return self._rows[name][-1] if split else self._values[name]

    def up_to_now(self, name: str) -> Tensor:
        """All rows of a node so far, side by side."""
        rows = self._rows[name]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    @property
    def kept_bytes(self) -> int:
        """What is remembered, tensors that are the same memory counted once, and the input."""
        tensors = [t for rows in self._rows.values() for t in rows if isinstance(t, Tensor)]
        distinct = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(distinct.values()) + self.x.numel() * self.x.element_size()
