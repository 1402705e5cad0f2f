"""Runs an exported graph on tensors without numbers, to learn shapes and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from subnet_search.elastic.operations.exact_layers import plain_layer
from subnet_search.elastic.operations.parts import PartCall
from subnet_search.elastic.operations.seen import Inputs

aten = torch.ops.aten

Parts = Mapping[str, Sequence[PartCall]]

# Their answer's layout is up to the device, and so is whether a reshape of it is a view.
LAID_OUT_BY_DEVICE = frozenset({aten.scaled_dot_product_attention.default})


def note_values(model: nn.Module, graph: fx.Graph, parts: Parts, one: Inputs, two: Inputs) -> None:
    """Notes what every node's value is like, at batch 1 and 2.

    Args:
        model: the graph's.
        graph: gets the notes, in the meta of its nodes.
        parts: what the calls of parts that are called as they are give back.
        one, two: the inputs of batch 1 and 2.
    """
    if LAID_OUT_BY_DEVICE.isdisjoint(node.target for node in graph.nodes):
        with suppress(Exception):  # operators that ask for the device need tensors that know theirs: below
            FakeRun(model, graph, parts, MetaTensors()).note(one, two)
            return
    FakeRun(model, graph, parts, FakeTensorMode(allow_non_fake_inputs=True)).note(one, two)


class MetaTensors:
    """Stand-ins on the device "meta" for tensors; those that share memory go on sharing it.

    They cost a third of the time of fake tensors, which know which device they stand for.
    """

    def __init__(self) -> None:
        self._device = torch.device("meta")
        self._memories: dict[int, Tensor] = {}  # by that of the tensor stood in for

    def __enter__(self) -> MetaTensors:
        self._device.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._device.__exit__(*raised)

    def from_tensor(self, tensor: Tensor) -> Tensor:
        """A tensor like that one, without numbers."""
        size = tensor.untyped_storage().nbytes()
        memory = self._memories.setdefault(
            _storage(tensor), torch.empty(size, dtype=torch.uint8, device=self._device)
        )
        like = torch.empty(0, dtype=tensor.dtype, device=self._device)
        storage: Any = memory.untyped_storage()
        return like.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


class FakeRun(fx.Interpreter):
    """Runs a graph; arguments as of `note_values`, and what makes tensors without numbers."""

    def __init__(
        self, model: nn.Module, graph: fx.Graph, parts: Parts, mode: MetaTensors | FakeTensorMode
    ) -> None:
        self.mode = mode
        tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
        self.fake = {name: self.mode.from_tensor(t.detach()) for name, t in tensors.items()}
        self.weights = {_storage(t) for t in self.fake.values()}
        self.held: list[Any] = []
        super().__init__(nn.Module(), graph=graph)
        self.model, self.parts = model, parts
        self.rows = 0
        self.values: dict[fx.Node, list[Any]] = {}

    def note(self, one: Inputs, two: Inputs) -> None:
        """Fills the meta of all nodes; the inputs are those of batch 1 and 2."""
        for self.rows, inputs in enumerate((one, two), start=1):
            with self.mode, torch.no_grad():
                flat = tree_leaves(inputs)
                self.run(*(self.mode.from_tensor(v) if isinstance(v, Tensor) else v for v in flat))
        for node, values in self.values.items():
            first, second = values
            node.meta |= {"shape": None, "memory": None, "per_row": (), "number": None, "macs": 0}
            if "call" in node.meta:
                node.meta["macs"] = self._part(node).macs
            if isinstance(first, Tensor):
                node.meta["shape"] = tuple(first.shape)
                node.meta["per_row"] = tuple(a != b for a, b in zip(first.shape, second.shape, strict=True))
                node.meta["memory"] = None if _storage(first) in self.weights else _storage(first)
                node.meta["dtype"] = first.dtype
            elif isinstance(first, int | float | bool):
                node.meta["number"] = (first, second)

    def fetch_attr(self, target: str) -> Any:
        """The parameter or buffer without its numbers."""
        return self.fake[target]

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A layer's answer, by what the plain kind computes."""
        layer = self.model.get_submodule(target)
        state: dict[str, Tensor] = {
            name: self.fake[f"{target}.{name}"]
            for name in (*layer._parameters, *layer._buffers)
            if f"{target}.{name}" in self.fake
        }
        return torch.func.functional_call(plain_layer(layer), state, args)

    def run_node(self, n: fx.Node) -> Any:
        """One node's value; a part's is made up from its record."""
        if "call" in n.meta:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            value = self._part(n).answer(self.rows, args, kwargs)
        else:
            value = super().run_node(n)
        self.values.setdefault(n, []).append(value)
        self.held += [v for v in tree_leaves(value) if isinstance(v, Tensor)]  # no memory is used twice
        return value

    def _part(self, node: fx.Node) -> PartCall:
        return self.parts[str(node.target)][node.meta["call"]]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
