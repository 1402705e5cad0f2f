"""Vertical slicing: a plain network in K groups of channels, of which group j reads no group after it.

Every convolution becomes block lower-triangular. So group j never depends on later groups, one batch norm serves all
sub-nets, one forward pass gives the predictions of all of them, and going from k to k + 1 groups computes row k + 1
alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from search_spaces import CostTable, InvalidInput, SearchSpace
from search_spaces.presets.branches import BRANCH_KNOB, branch_space
from subnet_search.elastic.branch_rows import Rows, compile_rows, is_split, split_nodes
from subnet_search.elastic.graph import UntraceableModelError
from subnet_search.elastic.padding import PaddedShortcut
from subnet_search.elastic.triangular import BranchHead, TriangularConv2d, TriangularLinear
from subnet_search.modes import evaluation_mode

EXACT = 1e-9  # in double precision, relative to the largest answer: what reuse may differ by
NORMS = (nn.BatchNorm2d, nn.BatchNorm1d)


class TriangularNet(nn.Module):
    """A network in K groups of channels; sub-net k is its first k groups.

    Made by `make_triangular`. `forward` gives the logits of all sub-nets, `rows` those of one after the other, each
    computing only what the one before left out, `rows(x)` being what an anytime loop runs.

    Attributes:
        body: the traced network up to the classifier.
        head: z_k = z_(k-1) + U_k h_k + b_k.
        space: the knob "branches".
        row_macs: multiply-adds that each further group adds, `[branches]`, at batch 1.
        head_path: of the classifier in the network that was converted.
    """

    def __init__(
        self, body: fx.GraphModule, head: BranchHead, branches: int, example: Tensor, head_path: str = ""
    ) -> None:
        super().__init__()
        self.body, self.head, self.branches = body, head, branches
        self.example: Tensor
        self.register_buffer("example", example, persistent=False)  # goes to where the weights go
        self.head_path = head_path
        self.space: SearchSpace = branch_space(branches)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits `[B, size]` of sub-nets 1 to K, from one pass."""
        return self.head(self.body(x))

    def rows(self, x: Tensor) -> Iterator[Tensor]:
        """Logits of sub-net 1, 2, ..., in evaluation mode; each step computes one row of every layer.

        Raises:
            InvalidInput: the network is in training mode, where a batch norm needs the whole batch's statistics, or x
                has other channels than the example.
        """
        if self.training:
            raise InvalidInput("rows are computed in evaluation mode; call eval() first")
        wanted = self.example.shape
        if not isinstance(x, Tensor):
            raise InvalidInput(f"the input must be a tensor, got a {type(x).__name__}")
        if x.ndim != len(wanted) or x.shape[1] != wanted[1]:  # rows of a weight would fit fewer channels, too
            raise InvalidInput(
                f"the input must be a batch [B, {', '.join(map(str, wanted[1:]))}], got {list(x.shape)}; give images "
                "as the network was made for"
            )
        run = Rows(self._steps, x)
        logits: Tensor | None = None
        features: list[Tensor] = []
        for k in range(self.branches):
            features.append(run.next_row())
            logits = self.head.row(k, features, logits)
            yield logits.clone()  # the next row begins with these

    @cached_property
    def _steps(self) -> Any:
        return compile_rows(self.body, self.branches)

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value for name, value in self.__dict__.items() if name != "_steps"
        }  # of these layers alone

    @cached_property
    def row_macs(self) -> tuple[int, ...]:
        """Multiply-adds that each further group adds at batch 1: convolutions and linear layers."""
        run, found = Rows(self._steps, self.example, count=True), []
        with evaluation_mode(self), torch.no_grad():
            for k in range(self.branches):
                run.next_row()
                found.append(run.macs + self.head.row_macs(k))
        return tuple(found)

    def params(self, k: int) -> int:
        """Numbers that were trained in sub-net k (1 to K); what the pattern leaves out does not count."""
        return self._numbers(k, buffers=False)

    def _numbers(self, k: int, *, buffers: bool) -> int:
        total = self.head.numbers(k)
        for module in self.body.modules():
            if isinstance(module, TriangularConv2d | TriangularLinear):
                total += module.numbers(k)
            elif isinstance(module, NORMS):
                tensors = 2 * module.affine + 2 * (buffers and module.track_running_stats)
                total += tensors * module.num_features * k // self.branches
        return total

    @cached_property
    def costs(self) -> CostTable:
        """The costs of sub-nets as polynomials of the number of branches.

        Peak activation is what reuse needs: all rows of all layers are kept until the last one.

        Raises:
            InvalidInput: they are no such polynomials, as where sub-nets have classes of their own level.
        """
        totals = {
            "macs": [sum(self.row_macs[:k]) for k in range(1, self.branches + 1)],
            "params": [self._numbers(k, buffers=False) for k in range(1, self.branches + 1)],
            "bytes": [4 * self._numbers(k, buffers=True) for k in range(1, self.branches + 1)],
            "peak": [self._kept_bytes(k) for k in range(1, self.branches + 1)],
        }
        terms = {name: _polynomial(values, name) for name, values in totals.items()}
        return CostTable(
            (BRANCH_KNOB,), (1,), terms["macs"], terms["params"], terms["bytes"], (terms["peak"],)
        )

    def _kept_bytes(self, k: int) -> int:
        run = Rows(self._steps, self.example, count=True)
        with evaluation_mode(self), torch.no_grad():
            for _ in range(k):
                run.next_row()
        return run.kept_bytes


def _polynomial(values: Sequence[int], what: str) -> dict[tuple[str, ...], int]:
    """a + b k + c k^2 through the values at k = 1, 2, ...; `InvalidInput` if they are no such thing."""
    if len(values) < 3:
        slope = values[1] - values[0]
        return {(): values[0] - slope, (BRANCH_KNOB,): slope}
    double = values[2] - 2 * values[1] + values[0]
    c, odd = divmod(double, 2)
    b = values[1] - values[0] - 3 * c
    a = values[0] - b - c
    if odd or any(a + b * k + c * k * k != value for k, value in enumerate(values, start=1)):
        raise InvalidInput(
            f"the {what} of these branches are no polynomial of their number in whole numbers; read row_macs and "
            "params(k)"
        )
    return {(): a, (BRANCH_KNOB,): b, (BRANCH_KNOB, BRANCH_KNOB): c}


def make_triangular(
    model: nn.Module, example: Tensor, branches: int = 8, sizes: Sequence[int] | None = None
) -> TriangularNet:
    """Converts a plain (residual) network; the model given is left untouched.

    Channels of every layer fall into `branches` equal groups. Of each weight the blocks on and below the diagonal are
    kept, so the network computes something else than before and has to be trained (weights that are kept are a start).

    Args:
        model: convolutions, linear layers, batch norms, activations, pooling, additions; its answer is that of a
            linear layer. `torch.fx` must be able to follow it.
        example: an input `[B, C, H, W]`.
        branches: K.
        sizes: outputs of each sub-net, never falling, for labels of several levels (`LabelTree.spread`); by default
            all have the model's.

    Source:
        Lee, Shin, "Anytime Neural Prediction via Slicing Networks Vertically", 2018, arXiv:1807.02609, which names a
        sparsity pattern; the triangular form is ours.

    Raises:
        InvalidInput: a layer's channels do not fall into so many groups, or something mixes the channels of all groups.
        UntraceableModelError: fx cannot follow the model.
    """
    branch_space(branches)
    if not isinstance(example, Tensor) or example.ndim not in (2, 4) or len(example) == 0:
        came = list(example.shape) if isinstance(example, Tensor) else f"a {type(example).__name__}"
        raise InvalidInput(
            f"the example must be a batch such as [1, 3, 224, 224], got {came}; give one tensor"
        )
    own = copy.deepcopy(model)
    try:
        graph = _Tracer().trace(own)
    except Exception as error:  # the user's forward, in one of many ways
        raise UntraceableModelError(
            f"{type(model).__name__} cannot be traced: {error}; branches need a forward that torch.fx can follow"
        ) from error
    for node in graph.nodes:
        if node.op == "call_module" and not node.args and len(node.kwargs) == 1:  # self.conv(input=x)
            node.args, node.kwargs = tuple(node.kwargs.values()), {}
    _read_what_was_changed(graph, own)
    head_node = _head_of(graph, own)
    linear: Any = own.get_submodule(str(head_node.target))
    for node in split_nodes(graph, own):
        if node.op == "call_module" and node is not head_node:
            _exchange(own, node, branches)
    [output] = [node for node in graph.nodes if node.op == "output"]
    output.args = (head_node.args[0],)
    graph.erase_node(head_node)
    graph.lint()
    head = BranchHead(linear.in_features, branches, sizes or [linear.out_features] * branches)
    head.inherit(linear)
    net = TriangularNet(fx.GraphModule(own, graph), head, branches, example[:1], str(head_node.target))
    net.train(model.training)
    _check(net, model)
    return net


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, PaddedShortcut) or super().is_leaf_module(m, module_qualified_name)


def _head_of(graph: fx.Graph, model: nn.Module) -> fx.Node:
    [output] = [node for node in graph.nodes if node.op == "output"]
    last = output.args[0]
    if (
        isinstance(last, fx.Node)
        and last.op == "call_module"
        and isinstance(model.get_submodule(str(last.target)), nn.Linear)
    ):
        return last
    raise InvalidInput(
        f"the answer of {type(model).__name__} must be that of its last linear layer; give a classifier that "
        "ends in one"
    )


def _read_what_was_changed(graph: fx.Graph, model: nn.Module) -> None:
    """Where an activation works in place, those who read its input later read its answer, which is a tensor of its own:
    in rows, who reads it earlier does so again after it.
    """
    seen: list[fx.Node] = []
    for node in graph.nodes:
        seen.append(node)
        module: Any = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not getattr(module, "inplace", False) and not node.kwargs.get("inplace", False):
            continue
        [source] = node.all_input_nodes
        if len(source.users) > 1:
            source.replace_all_uses_with(node, lambda user: user not in seen)
            if module is None:
                node.kwargs = {**node.kwargs, "inplace": False}
            else:
                module.inplace = False


def _exchange(model: nn.Module, node: fx.Node, branches: int) -> None:
    """Makes one layer triangular."""
    path = str(node.target)
    module = model.get_submodule(path)
    source = node.args[0]
    reads_split = isinstance(source, fx.Node) and is_split(source)
    if isinstance(module, PaddedShortcut):
        _divide(path, branches, module.in_channels, module.out_channels)
        thin = PaddedShortcut(module.in_channels // branches, module.out_channels // branches, module.stride)
        offsets = torch.arange(branches).repeat_interleave(len(thin.sources)) * thin.in_channels
        sources = thin.sources.repeat(branches)
        module.sources.copy_(torch.where(sources < 0, sources, sources + offsets))
        return
    new: nn.Module
    if type(module) is nn.Conv2d:
        _divide(path, branches, module.out_channels, module.in_channels if reads_split else branches)
        if module.groups > 1 and (not reads_split or module.groups % branches):
            raise InvalidInput(
                f"{path} has {module.groups} groups, which do not fall into {branches} branches; take a number of "
                "branches that divides them"
            )
        new = TriangularConv2d(module, branches, reads_split)
    elif type(module) is nn.Linear:
        _divide(path, branches, module.out_features, module.in_features if reads_split else branches)
        new = TriangularLinear(module, branches, reads_split)
    elif isinstance(module, NORMS):
        _divide(path, branches, module.num_features)
        return
    else:
        return
    parent, _, name = path.rpartition(".")
    if isinstance(getattr(model.get_submodule(parent), name), TriangularConv2d | TriangularLinear):
        return
    setattr(model.get_submodule(parent), name, new)


def _divide(path: str, branches: int, *sizes: int) -> None:
    for size in sizes:
        if size % branches:
            raise InvalidInput(
                f"the {size} channels of {path} do not fall into {branches} equal groups; take a number of branches "
                "that divides all widths"
            )


def _check(net: TriangularNet, model: nn.Module) -> None:
    """Holds the rows against the one pass, in double precision on random statistics."""
    trial = copy.deepcopy(net).double().eval()
    generator = torch.Generator().manual_seed(0)
    for module in trial.modules():
        if isinstance(module, NORMS) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.uniform_(-0.5, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    x = torch.randn((2, *net.example.shape[1:]), generator=generator, dtype=torch.float64)
    try:
        with torch.no_grad():
            pairs = list(zip(trial(x), trial.rows(x), strict=True))
    except InvalidInput:
        raise
    except Exception as error:  # shapes that do not meet
        raise InvalidInput(_mixes(model, str(error))) from error
    for whole, row in pairs:
        if whole.shape != row.shape or not (
            (whole - row).abs().max() <= EXACT * max(1.0, float(whole.abs().max()))
        ):
            raise InvalidInput(_mixes(model, "rows differ from the one pass"))


def _mixes(model: nn.Module, why: str) -> str:
    return (
        f"something in the forward of {type(model).__name__} mixes the channels of all groups ({why}); branches need "
        "operations that treat channels one by one between convolutions and linear layers"
    )
