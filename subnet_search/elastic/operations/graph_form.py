"""A supernet's model that runs the exported program instead of its own forward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from search_spaces import InvalidInput
from subnet_search.elastic.graph import Example
from subnet_search.elastic.groups import ChannelMap, Kept
from subnet_search.elastic.layers import take
from subnet_search.elastic.operations.program import Count, Layer, Part, Positions, Program, Tap, Weight


@dataclass
class Choice:
    """What a program is told of the active sub-net."""

    counts: list[int]
    positions: list[Tensor]
    kept: list[tuple[tuple[int, Kept], ...]]  # of every weight, axis by axis
    kept_blocks: frozenset[str]


class Taps(dict[str, Callable[[Tensor], Tensor]]):
    """What is made of the tensors that pass the taps of a program, by place; where nothing is set they stay."""

    def __missing__(self, place: str) -> Callable[[Tensor], Tensor]:
        return _as_it_is


def _as_it_is(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True, eq=False)
class GraphForm:
    """A program with what it needs to run inside a model.

    Attributes:
        program: the statements.
        parameters: maps of the elastic axes of parameters that no layer slices, by name.
        weights: names of those of them that make a group's channels, by the writer that stands for them.
        keywords: the names of the arguments that the example gave, in the order of the program's inputs.
        fixed: the values of those inputs that are no tensors, by position: they are written down in the graph.
        blocks: all skippable blocks.
        parts: paths of the modules that are called as they are.
    """

    program: Program
    parameters: Mapping[str, Mapping[int, ChannelMap]]
    weights: Mapping[str, str]
    keywords: tuple[str, ...]
    fixed: Mapping[int, Any]
    blocks: tuple[str, ...]
    parts: frozenset[str] = frozenset()
    _compiled: dict[str, Any] = field(default_factory=dict)

    def __deepcopy__(self, memo: Any) -> GraphForm:
        return self  # nothing in it ever changes

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": {}}

    def choice(self, units: Mapping[str, int], skipped: Sequence[str], device: torch.device) -> Choice:
        """The numbers of one sub-net.

        Args:
            units: of every group.
            skipped: blocks.
            device: of the model.
        """
        return Choice(
            [part.value(units) for part in self.program.parts[Count]],
            [part.value(units).to(device) for part in self.program.parts[Positions]],
            [
                tuple((axis, m.kept(units)) for axis, m in self.parameters.get(part.name, {}).items())
                for part in self.program.parts[Weight]
            ],
            frozenset(self.blocks) - set(skipped),
        )

    def run(self, model: nn.Module, choice: Choice, inputs: Sequence[Tensor]) -> Any:
        """The answer of the active sub-net."""
        if "forward" not in self._compiled:
            self._compiled["forward"] = self._compile()
        layers = [model.get_submodule(part.path) for part in self.program.parts[Layer]]
        weights = [
            sliced(tensor_of(model, part.name), kept)
            for part, kept in zip(self.program.parts[Weight], choice.kept, strict=True)
        ]
        device = next(model.parameters()).device  # the model may have moved since the choice was made
        positions = [tensor.to(device) for tensor in choice.positions]
        told = (layers, weights, choice.counts, positions, choice.kept_blocks, model.taps)
        return self._compiled["forward"](model, *told, *inputs)

    def _compile(self) -> Any:
        places: dict[Part, str] = {}
        for kind, name in (
            (Count, "counts"),
            (Positions, "positions"),
            (Weight, "weights"),
            (Layer, "layers"),
        ):
            places |= {part: f"{name}[{i}]" for i, part in enumerate(self.program.parts[kind])}

        def text(part: Part) -> str:
            if isinstance(part, Tap):
                return f"taps[{part.place!r}]({part.variable})"
            return part if isinstance(part, str) else places[part]

        lines = self.program.lines(text, None)
        told = (
            "self",
            "layers",
            "weights",
            "counts",
            "positions",
            "kept_blocks",
            "taps",
            *self.program.inputs,
        )
        source = f"def forward({', '.join(told)}):\n" + "".join(f"    {line}\n" for line in lines)
        scope: dict[str, Any] = {"torch": torch, "aten": torch.ops.aten}
        exec(compile(source, "<program of a supernet>", "exec"), scope)  # our own statements
        return scope["forward"]


def sliced(tensor: Tensor, kept: Sequence[tuple[int, Kept]]) -> Tensor:
    """The kept part of a tensor."""
    for axis, positions in kept:
        tensor = take(tensor, axis, positions)
    return tensor


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its dotted name."""
    path, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(path), leaf)
    return tensor


class RunsGraph:
    """Mixed into the class of a supernet's model: its forward runs the graph form."""

    graph_form: GraphForm
    choice: Choice
    taps: Taps

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The active sub-net's answer."""
        form = self.graph_form
        named = form.keywords[len(args) :]
        inputs = list(tree_leaves((args, [kwargs[name] for name in named if name in kwargs])))
        changed = [name for name in kwargs if name not in named]
        changed += [
            repr(inputs[i]) for i, value in form.fixed.items() if i < len(inputs) and inputs[i] != value
        ]
        if changed or len(inputs) != len(form.program.inputs):
            other = ", ".join(changed) or f"{len(inputs)} inputs"
            raise InvalidInput(
                f"the graph takes what its example gave, {', '.join(form.keywords)}, with numbers as they were, but "
                f"got {other}; convert with an example that gives what you call with"
            )
        return self.graph_form.run(self, self.choice, inputs)  # type: ignore[arg-type]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        own = type(self).__mro__[2]
        return _blank, (own,), self.__getstate__()


def in_order(model: nn.Module, example: Example) -> Example:
    """The example with named inputs in the order of the forward's parameters."""
    if not isinstance(example, dict):
        return example
    return {name: example[name] for name in (*_parameters(model), *example) if name in example}


def argument_names(model: nn.Module, example: Example) -> tuple[str, ...]:
    """The names of the forward's parameters that an example gives."""
    if isinstance(example, dict):
        return tuple(example)
    return tuple(_parameters(model)[: len(example) if isinstance(example, tuple) else 1])


def _parameters(model: nn.Module) -> list[str]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind not in kinds]


def run_graph(model: nn.Module, form: GraphForm) -> None:
    """Makes a model run its graph form."""
    _exchange(model)
    model.graph_form, model.taps = form, Taps()  # type: ignore[assignment]


_GRAPH_KINDS: dict[type[nn.Module], type[nn.Module]] = {}


def _exchange(model: nn.Module) -> None:
    kind = type(model)
    if kind not in _GRAPH_KINDS:
        _GRAPH_KINDS[kind] = type(f"Graph{kind.__name__}", (RunsGraph, kind), {})
    model.__class__ = _GRAPH_KINDS[kind]


def _blank(kind: type[nn.Module]) -> nn.Module:
    module = kind.__new__(kind)
    _exchange(module)
    return module
