"""Copies an exported graph into one of ours: parameters by the user's names, layers as calls of the user's modules."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._ops import HigherOrderOperator
from torch.export.graph_signature import InputKind

from subnet_search.elastic.graph import UntraceableModelError, home_paths
from subnet_search.elastic.operations.exact_layers import aten, does
from subnet_search.elastic.operations.parts import MARK, PartCall


def keep_constant(model: nn.Module, constants: dict[str, Tensor], tensor: Tensor) -> str:
    """Notes one more constant, and makes it a buffer; returns the name that graphs read it under."""
    name = f"constant_{len(constants)}"
    constants[name] = tensor
    model.register_buffer(name, tensor, persistent=False)
    return name


class Reader:
    """One copy: the `graph`, and the tensors that the forward makes, `constants`.

    Args:
        model: whose layers the graph is to call.
        program: what was exported of it.
        parts: the calls of modules that marks stand for.
    """

    def __init__(
        self,
        model: nn.Module,
        program: torch.export.ExportedProgram,
        parts: Mapping[str, Sequence[PartCall]],
    ) -> None:
        self.model, self.graph, self.parts = model, fx.Graph(cast(Any, model)), parts
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
        elif node.target is MARK:
            copies[node] = self._part(node)
        elif node.target is operator.getitem and isinstance(copies[args[0]], list | tuple):
            copies[node] = copies[args[0]][args[1]]
        elif node.target is aten.lift_fresh_copy.default and all(map(_only_reads, node.users)):
            copies[node] = copies[args[0]]  # of a constant that nothing writes into
        elif node.target is not aten._assert_tensor_metadata.default:
            copies[node] = self._layer(node) or self.graph.node_copy(node, lambda n: copies[n])
            copies[node].meta = {"scope": self._scope(node)}
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
        return keep_constant(self.model, self.constants, self.program.constants[spec.target])

    def _part(self, node: fx.Node) -> list[fx.Node]:
        """The call of the module that a mark stands for; returns its tensors."""
        inputs, _, path, number = cast("tuple[Any, ...]", node.args)
        call = self.parts[path][number]
        args, kwargs = call.arguments(self.copies[n] for n in inputs)
        made = self.graph.call_module(path, args, kwargs)
        made.meta = {"scope": self._scope(node), "call": number}
        picked: dict[tuple[Any, ...], fx.Node] = {(): made}
        for keys in call.keys:
            for depth, key in enumerate(keys):
                if keys[: depth + 1] not in picked:
                    one = self.graph.call_function(operator.getitem, (picked[keys[:depth]], key))
                    one.meta = {"scope": self._scope(node)}
                    picked[keys[: depth + 1]] = one
        return [picked[keys] for keys in call.keys]

    def _scope(self, node: fx.Node) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.homes.get(path, path) for path in _scope(node)))

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
            if held <= own and does(layer, path, node, copies):
                return self.graph.call_module(path, (copies[cast(fx.Node, node.args[0])],))
        return None


def _only_reads(node: fx.Node) -> bool:
    """Whether an operator neither writes into what it is given nor returns a part of it."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and not schema.is_mutable and not any(r.alias_info for r in schema.returns)


def _scope(node: fx.Node) -> tuple[str, ...]:
    """The paths of the modules around an operation, outermost first; a module's second call has the path alone."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path).partition("@")[0] for path, _ in stack.values()]
    return tuple(p for p in paths if p and "_empty_nn_module_stack" not in p)
