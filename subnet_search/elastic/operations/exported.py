"""Reads a model through `torch.export`: every tensor operation, down to what a Python forward hides.

Where `graph.trace` stops at functions that it cannot look into, and at sizes that the user's Python computes, the
exported graph shows each operation with its numbers. Operations that are exactly a layer of the model (a convolution
with the layer's own weight and stride, say) are given back to that layer, so that supernets keep working on layers.
"""

from __future__ import annotations

import copy
import io
import logging
import operator
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export.graph_signature import InputKind
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map

from subnet_search.elastic.graph import (
    Call,
    Example,
    Traced,
    UntraceableModelError,
    call_arguments,
    check_runs,
    copied,
    home_paths,
)

aten = torch.ops.aten


@dataclass(frozen=True)
class Exported(Traced):
    """An exported graph: beside the layers' calls it holds operators of torch, parameters, buffers and constants.

    Beside `shape` and `memory`, `per_row` in each node's meta tells which axes grow with the batch; for a node that
    is a number (or a list of numbers) `number` holds its value at batch 1 and 2.

    Attributes:
        constants: tensors made in the forward, by the name that the graph reads them under.
        out_spec: how the outputs are packed.
    """

    constants: dict[str, Tensor] = field(default_factory=dict)
    out_spec: TreeSpec | None = None

    def add_constant(self, tensor: Tensor) -> str:
        """Keeps one more constant; returns the name that the graph reads it under."""
        name = f"constant_{len(self.constants)}"
        self.constants[name] = tensor
        self.model.register_buffer(name, tensor, persistent=False)
        return name

    @cached_property
    def readers(self) -> dict[str, list[fx.Node]]:
        """The operations that evaluation reads each parameter and buffer in, by its name."""
        found: dict[str, list[fx.Node]] = defaultdict(list)
        for node in self.graph.nodes:
            if node.op == "get_attr":
                found[str(node.target)] += node.users
            elif node.op == "call_module":
                layer = self.module(node)
                for leaf in (*layer._parameters, *layer._buffers):
                    found[f"{node.target}.{leaf}"].append(node)
        return dict(found)

    def is_constant(self, node: fx.Node) -> bool:
        """Whether a tensor depends on nothing but buffers and constants."""
        if node.op == "get_attr":
            return str(node.target) in self._fixed_tensors
        return node.op == "call_function" and all(
            n.meta["number"] is not None or self.is_constant(n) for n in node.all_input_nodes
        )

    def value(self, node: fx.Node) -> Any:
        """The value of a constant tensor."""
        if node.op == "get_attr":
            return self._fixed_tensors[str(node.target)]
        if node.meta["number"] is not None:
            return node.meta["number"][0]
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.value)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    @cached_property
    def _fixed_tensors(self) -> dict[str, Tensor]:
        return dict(self.model.named_buffers())


def read_exported(model: nn.Module, example: Example) -> Exported:
    """Reads the forward in evaluation mode, of any batch size.

    Raises:
        UntraceableModelError: torch.export cannot follow the forward.
        InvalidInput: the model does not run on the example.
    """
    model = copied(
        model
    ).eval()  # which was not run yet: some keep in evaluation what they computed from weights
    args, kwargs = call_arguments(_rows(example, 2))
    batch = torch.export.Dim("batch", min=1)
    rows = tree_map(lambda v: {0: batch} if isinstance(v, Tensor) and v.ndim > 0 else None, (args, kwargs))
    try:
        with _quiet():
            program = torch.export.export(
                model, args, kwargs, dynamic_shapes=rows[0] or rows[1], strict=False
            )
    except Exception as error:  # user code runs here: anything can come
        check_runs(model, example)
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UntraceableModelError(
            f"{type(model).__name__}.forward cannot be exported: {first_line}. Move the part that depends on tensor "
            "values into a module of its own; that module then keeps its full width."
        ) from error
    reader = _Reader(model, program)
    graph = reader.graph
    _FakeRun(model, graph).note(example)
    return Exported(
        model,
        graph,
        tuple(calls_in(graph)),
        {},
        constants=reader.constants,
        out_spec=program.call_spec.out_spec,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps off the screen what torch prints of a forward that it cannot follow: our own message says it in short."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


class _Reader:
    """Copies the exported graph: parameters by the user's names, layers as calls of the user's modules."""

    def __init__(self, model: nn.Module, program: torch.export.ExportedProgram) -> None:
        self.model, self.graph = model, fx.Graph(cast(Any, model))
        self.homes = home_paths(model)
        tensors = (*model.named_parameters(), *model.named_buffers())
        self.names = {id(tensor): name for name, tensor in tensors}  # the first name of what has several
        self.constants: dict[str, Tensor] = {}
        self.copies: dict[fx.Node, Any] = {}
        self.signature = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        self.program = program
        for node in program.graph.nodes:
            self._copy(node, program.graph_module)
        self.graph.eliminate_dead_code()

    def _copy(self, node: fx.Node, owner: fx.GraphModule) -> None:
        copies, args = self.copies, cast("tuple[Any, ...]", node.args)
        if node.op == "placeholder":
            spec = self.signature[node.name]
            mine = spec.kind == InputKind.USER_INPUT
            copies[node] = (
                self.graph.placeholder(node.name) if mine else self.graph.get_attr(self._stored(spec))
            )
        elif node.op == "get_attr":
            copies[node] = getattr(owner, str(node.target))  # a graph that is called below
        elif node.op == "output":
            copies[node] = self.graph.output(fx.map_arg(args[0], lambda n: copies[n]))
        elif isinstance(node.target, HigherOrderOperator):
            copies[node] = self._inlined(node)
        elif node.target is operator.getitem and isinstance(copies[args[0]], list | tuple):
            copies[node] = copies[args[0]][args[1]]
        elif node.target is aten.lift_fresh_copy.default and all(map(_only_reads, node.users)):
            copies[node] = copies[args[0]]  # of a constant that nothing writes into
        elif node.target is not aten._assert_tensor_metadata.default:
            copies[node] = self._layer(node) or self.graph.node_copy(node, lambda n: copies[n])
            copies[node].meta = {"scope": tuple(dict.fromkeys(self.homes.get(p, p) for p in _scope(node)))}
        if isinstance(copies.get(node), fx.Node):
            copies[node].meta.setdefault("scope", ())

    def _inlined(self, node: fx.Node) -> Any:
        """The operations of a part that runs with other autocast or gradient settings: we run it with those around."""
        graphs = [self.copies[n] for n in node.args if isinstance(n, fx.Node) and n.op == "get_attr"]
        if len(graphs) != 1 or "wrap_with" not in str(node.target):
            raise UntraceableModelError(f"the operator {node.target} cannot be followed")
        inner = graphs[0]
        args: list[Any] = list(node.args)
        given = iter(args[[self._is_graph(n) for n in args].index(True) + 1 :])
        for part in inner.graph.nodes:
            if part.op == "placeholder":
                self.copies[part] = self.copies[next(given)]
            elif part.op == "output":
                answer: Any = part.args[0]
                return fx.map_arg(answer, lambda n: self.copies[n])
            else:
                self._copy(part, inner)
        raise UntraceableModelError(f"the operator {node.target} gives nothing back")

    def _is_graph(self, value: Any) -> bool:
        return isinstance(value, fx.Node) and isinstance(self.copies.get(value), fx.GraphModule)

    def _stored(self, spec: Any) -> str:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            path, _, leaf = str(spec.target).rpartition(".")
            return self.names[id(getattr(self.model.get_submodule(path), leaf))]
        name = f"constant_{len(self.constants)}"
        self.constants[name] = self.program.constants[spec.target]
        self.model.register_buffer(name, self.constants[name], persistent=False)
        return name

    def _layer(self, node: fx.Node) -> fx.Node | None:
        """The call of the layer that does exactly this, if there is one."""
        copies = self.copies
        held = {
            n.target
            for n in map(copies.get, node.all_input_nodes)
            if isinstance(n, fx.Node) and n.op == "get_attr"
        }
        for path in sorted({str(name).rpartition(".")[0] for name in held}):
            layer = self.model.get_submodule(path)
            own = {f"{path}.{name}" for name in (*layer._parameters, *layer._buffers)}
            if held <= own and _does(layer, path, node, copies):
                return self.graph.call_module(path, (copies[cast(fx.Node, node.args[0])],))
        return None


def _only_reads(node: fx.Node) -> bool:
    """Whether an operator neither writes into what it is given nor returns a part of it."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and not schema.is_mutable and not any(r.alias_info for r in schema.returns)


def _does(layer: nn.Module, path: str, node: fx.Node, copies: Mapping[fx.Node, fx.Node]) -> bool:
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


def _scope(node: fx.Node) -> tuple[str, ...]:
    """The paths of the modules around an operation, outermost first; a module's second call has the path alone."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path).partition("@")[0] for path, _ in stack.values()]
    return tuple(p for p in paths if p and "_empty_nn_module_stack" not in p)


class _FakeRun(fx.Interpreter):
    """Runs the graph on tensors without numbers, at batch 1 and 2, and notes what every node's value is like."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
        self.fake = {name: self.mode.from_tensor(t.detach()) for name, t in tensors.items()}
        self.weights = {_storage(t) for t in self.fake.values()}
        self.held: list[Any] = []
        super().__init__(nn.Module(), graph=graph)
        self.model = model
        self.values: dict[fx.Node, list[Any]] = {}

    def note(self, example: Example) -> None:
        """Fills the meta of all nodes."""
        for rows in (1, 2):
            args, kwargs = call_arguments(_rows(example, rows))
            flat = tree_flatten((args, kwargs))[0]
            with self.mode, torch.no_grad():
                self.run(*(self.mode.from_tensor(v) if isinstance(v, Tensor) else v for v in flat))
        for node, (one, two) in self.values.items():
            node.meta |= {"shape": None, "memory": None, "per_row": (), "number": None, "macs": 0}
            if isinstance(one, Tensor):
                node.meta["shape"] = tuple(one.shape)
                node.meta["per_row"] = tuple(a != b for a, b in zip(one.shape, two.shape, strict=True))
                node.meta["memory"] = None if _storage(one) in self.weights else _storage(one)
                node.meta["dtype"] = one.dtype
            elif isinstance(one, int | float | bool):
                node.meta["number"] = (one, two)

    def fetch_attr(self, target: str) -> Any:
        return self.fake[target]

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        layer = self.model.get_submodule(target)
        state: dict[str, Tensor] = {
            name: self.fake[f"{target}.{name}"]
            for name in (*layer._parameters, *layer._buffers)
            if f"{target}.{name}" in self.fake
        }
        return torch.func.functional_call(plain_layer(layer), state, args)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values.setdefault(n, []).append(value)
        if isinstance(value, Tensor):
            self.held.append(value)
        return value


def plain_layer(layer: nn.Module) -> nn.Module:
    """A layer that computes only what the plain kind does, where a sub-class adds to it; the tensors are shared."""
    kind = lifted_kind(layer)
    if kind is None or type(layer) is kind:
        return layer
    plain = copy.copy(layer)
    plain.__class__ = kind
    return plain


def lifted_kind(layer: nn.Module) -> type[nn.Module] | None:
    """The plain kind of a layer that exported operations are given back to."""
    return next((kind for kind in LIFTED if isinstance(layer, kind)), None)


LIFTED = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm,
    nn.GroupNorm,
)  # fmt: skip


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _rows(example: Example, count: int) -> Example:
    """The example's first row so many times."""
    repeated: Example = tree_map(
        lambda v: (
            v[:1].expand(count, *v.shape[1:]).contiguous() if isinstance(v, Tensor) and v.ndim > 0 else v
        ),
        example,
    )
    return repeated


def calls_in(graph: fx.Graph) -> Iterator[Call]:
    """The module calls that the graph's operations lie in, with what goes in and comes out."""
    inside: dict[str, dict[fx.Node, None]] = {}
    for node in graph.nodes:
        if node.op in ("call_function", "call_module"):
            for path in node.meta["scope"]:
                inside.setdefault(path, {})[node] = None
    for path, nodes in inside.items():
        given = {
            n: None for node in nodes for n in node.all_input_nodes if n not in nodes and n.op != "get_attr"
        }
        inputs = tuple(n for n in given if n.meta["number"] is None)
        outputs = [
            node
            for node in nodes
            if node.meta["number"] is None and any(user not in nodes for user in node.users)
        ]
        yield Call(path, inputs, outputs[0] if len(outputs) == 1 else None)
