"""Reads a model through `torch.export`: every tensor operation, down to what a Python forward hides.

Where `graph.trace` stops at functions that it cannot look into, and at sizes that the user's Python computes, the
exported graph shows each operation with its numbers. Operations that are exactly a layer of the model (a convolution
with the layer's own weight and stride, say) are given back to that layer, so that supernets keep working on layers.
Modules that the exporter cannot follow, those for which the user registered a rule, and torch's recurrent layers are
called as they are.
"""

from __future__ import annotations

import io
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import config
from torch.utils._pytree import TreeSpec, tree_map

from subnet_search.elastic.custom import registered_modules
from subnet_search.elastic.graph import (
    Call,
    Example,
    Traced,
    UntraceableModelError,
    call_arguments,
    check_runs,
    copied,
    enclosing,
    first_line,
)
from subnet_search.elastic.operations.culprits import find_culprits, outermost
from subnet_search.elastic.operations.fake_run import note_values
from subnet_search.elastic.operations.parts import marks_in_place, part_calls
from subnet_search.elastic.operations.reader import Reader, keep_constant
from subnet_search.elastic.operations.recurrent import recurrent_layers
from subnet_search.elastic.operations.seen import Inputs

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
        return keep_constant(self.model, self.constants, tensor)

    @cached_property
    def readers(self) -> dict[str, list[fx.Node]]:
        """The operations that evaluation reads each parameter and buffer in, by its name."""
        found: dict[str, list[fx.Node]] = defaultdict(list)
        for node in self.graph.nodes:
            if node.op == "get_attr":
                found[str(node.target)] += node.users
            elif node.op == "call_module":
                layer, whole = self.module(node), str(node.target) in self.parts
                own = [*layer.named_parameters(recurse=whole, remove_duplicate=False)]
                own += [*layer.named_buffers(recurse=whole, remove_duplicate=False)]  # type: ignore[list-item]
                for leaf, _ in own:
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

    The smallest modules that torch.export cannot follow are called as they are, and are `opaque`.

    Raises:
        UntraceableModelError: torch.export cannot follow the outermost forward.
        InvalidInput: the model does not run on the example.
    """
    inputs = (call_arguments(_rows(example, 1)), call_arguments(_rows(example, 2)))
    batch = torch.export.Dim("batch", min=1)
    rows = tree_map(lambda v: {0: batch} if isinstance(v, Tensor) and v.ndim > 0 else None, inputs[1])
    registered, opaque = registered_modules(model), dict[str, str]()
    while True:
        parts = outermost((*registered, *opaque))
        try:
            return _read(model, inputs, rows[0] or rows[1], {path: opaque.get(path, "") for path in parts})
        except Exception as error:  # user code runs here: anything can come
            check_runs(model, example)
            found = find_culprits(model, inputs, parts, _failure)
            if not found:
                raise UntraceableModelError(
                    f"{type(model).__name__}.forward cannot be exported: {first_line(error)}. Move the part that "
                    "depends on tensor values into a module of its own; that module then keeps its full width."
                ) from error
            opaque |= {path: f"its forward cannot be exported: {reason}" for path, reason in found.items()}


def _read(
    model: nn.Module, inputs: tuple[Inputs, Inputs], growing: Any, parts: Mapping[str, str]
) -> Exported:
    """One attempt.

    Args:
        model: to be read.
        inputs: of batch 1 and 2.
        growing: their axes that grow with the batch, as torch.export wants them.
        parts: the modules that are called as they are, with the reason; none for those with a rule. Recurrent layers
            are such modules, too, unless something else than tensors goes in.
    """
    layers = recurrent_layers(model)
    recurrent = {path: why for path, why in layers.items() if parts.keys().isdisjoint(enclosing(path))}
    asked = (*parts, *recurrent)
    calls = part_calls(copied(model).eval(), inputs, asked, optional=recurrent) if asked else {}
    parts = {**parts, **{path: why for path, why in recurrent.items() if path in calls}}
    model = copied(model).eval()  # not run yet: some keep in evaluation what they computed from weights
    with _quiet(), _without_stack_traces(), marks_in_place(model, calls):
        program = torch.export.export(model, *inputs[1], dynamic_shapes=growing, strict=False)
    reader = Reader(model, program, calls)
    note_values(model, reader.graph, calls, *inputs)
    return Exported(
        model,
        reader.graph,
        tuple(calls_in(reader.graph)),
        {path: reason for path, reason in parts.items() if reason},
        constants=reader.constants,
        out_spec=program.call_spec.out_spec,
        parts=frozenset(parts),
    )


def _failure(model: nn.Module, inputs: tuple[Inputs, Inputs], growing: Any, parts: Any) -> str | None:
    """Why a model cannot be read; None if it can."""
    try:
        _read(model, inputs, growing, dict.fromkeys(parts, ""))
    except Exception as error:  # user code runs here: anything can come
        return first_line(error)
    return None


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


@contextmanager
def _without_stack_traces() -> Iterator[None]:
    """Nobody reads where each node was made, and noting it takes a tenth of an export's time."""
    before = getattr(config, "do_not_emit_stack_traces", False)  # unknown to older torch, which notes them
    config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        config.do_not_emit_stack_traces = before


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
        outputs = tuple(
            node
            for node in nodes
            if node.meta["number"] is None and any(user not in nodes for user in node.users)
        )
        yield Call(path, inputs, outputs)
