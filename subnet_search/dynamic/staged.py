"""The program of a graph-form network in stages: pieces that every input runs, and blocks that some leave out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from search_spaces import InvalidInput
from subnet_search.elastic.operations.graph_form import GraphForm, sliced, tensor_of
from subnet_search.elastic.operations.program import Count, Layer, Part, Positions, Statement, Tap, Weight
from subnet_search.elastic.supernet import Supernet

RunBlock = Callable[[int, Tensor], Tensor]  # number of the block, what comes in, what goes out


class Told(NamedTuple):
    """What the lines of a program look up: the same for all rows of one call."""

    model: nn.Module
    layers: list[nn.Module]
    weights: list[Tensor]
    counts: list[int]
    positions: list[Tensor]


@dataclass(frozen=True, eq=False)
class Stage:
    """Some statements as one function.

    Attributes:
        block: its path; None for a piece between blocks.
        inputs: names of what it reads; of a block, what is handed on where it is skipped comes first.
        outputs: names of what later stages read.
        function: called with Told, the number of rows, the device and the inputs; gives a tuple of the outputs.
        paths: of the layers that it calls.
    """

    block: str | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    function: Callable[..., tuple[Any, ...]]
    paths: tuple[str, ...]


class StagedProgram:
    """A forward that asks, at each of some blocks, what to do.

    Args:
        form: of the network; its largest sub-net runs.
        wanted: paths of skippable blocks. Those that need more than one tensor of the image, or that answer with
            several, stay in their pieces.

    Attributes:
        blocks: the paths of the blocks that are stages of their own, in the order of their calls.
    """

    def __init__(self, form: GraphForm, wanted: Sequence[str]) -> None:
        self.form = form
        self.beside: dict[int, tuple[Any, ...]] = {}  # what blocks read that is the same for all images
        self._names = _names_of(form)
        alone = _alone(form, wanted)
        runs = [(block, list(own)) for block, own in itertools.groupby(
            form.program.statements, lambda s: s.blocks[0] if s.blocks and s.blocks[0] in alone else None
        )]  # fmt: skip
        self.stages = [self._stage(runs, place) for place in range(len(runs))]
        self.blocks = tuple(stage.block for stage in self.stages if stage.block is not None)
        self._answer: Any = eval(  # our own source: the names of variables
            f"lambda {', '.join(form.program.answer_uses)}: {form.program.answer}", {"torch": torch}
        )

    def told(self, model: nn.Module, units: Mapping[str, Any]) -> Told:
        """What the lines look up where each group keeps its first so many units, or those that are true."""
        device, parts = next(model.parameters()).device, self.form.program.parts
        return Told(
            model,
            [model.get_submodule(part.path) for part in parts[Layer]],
            [
                sliced(
                    tensor_of(model, part.name),
                    [(axis, m.kept(units)) for axis, m in self.form.parameters.get(part.name, {}).items()],
                )
                for part in parts[Weight]
            ],
            [part.value(units) for part in parts[Count]],
            [part.value(units).to(device) for part in parts[Positions]],
        )

    def run(self, told: Told, image: Tensor, run_block: RunBlock) -> Any:
        """The network's answer, with `run_block` in place of each block."""
        values: dict[str, Any] = {self.form.program.inputs[0]: image}
        self.beside.clear()
        number = 0
        for stage in self.stages:
            if stage.block is None:
                given = (values[name] for name in stage.inputs)
                found = stage.function(told, image.shape[0], image.device, *given)
            else:
                self.beside[number] = tuple(values[name] for name in stage.inputs[1:])
                found = (run_block(number, values[stage.inputs[0]]),)
                number += 1
            values |= dict(zip(stage.outputs, found, strict=True))
        return self._answer(*(values[name] for name in self.form.program.answer_uses))

    def run_block(self, number: int, told: Told, x: Tensor) -> Tensor:
        """What a block makes of some rows, inside of `run` or after it."""
        [stage] = [s for s in self.stages if s.block == self.blocks[number]]
        [out] = stage.function(told, x.shape[0], x.device, x, *self.beside[number])
        found: Tensor = out
        return found

    def _stage(self, runs: Sequence[tuple[str | None, list[Statement]]], place: int) -> Stage:
        block, own = runs[place]
        made = [statement.name for statement in own]
        later = {name for _, rest in runs[place + 1 :] for s in rest for name in s.uses}
        later |= set(self.form.program.answer_uses)
        outputs = tuple(name for name in dict.fromkeys(made) if name in later)
        used = dict.fromkeys(name for s in own for name in s.uses if name not in made)
        if block is not None:
            bypass = self.form.program.bypasses[block]
            outputs, used = bypass.outputs, dict.fromkeys((*bypass.given, *used))
        lines = [f"{s.name} = {''.join(map(self._text, s.parts))}" for s in own]
        head = ", ".join(("told", "rows", "device", *used))
        body = ["self, layers, weights, counts, positions = told", *lines, f"return ({', '.join(outputs)},)"]
        source = f"def stage({head}):\n" + "".join(f"    {line}\n" for line in body)
        scope: dict[str, Any] = {"torch": torch, "aten": torch.ops.aten}
        exec(compile(source, f"<stage {place} of a network>", "exec"), scope)  # our own statements
        paths = dict.fromkeys(part.path for s in own for part in s.parts if isinstance(part, Layer))
        return Stage(block, tuple(used), outputs, scope["stage"], tuple(paths))

    def _text(self, part: Part) -> str:
        if isinstance(part, Tap):
            return part.variable
        return part if isinstance(part, str) else self._names[part]


def _names_of(form: GraphForm) -> dict[Part, str]:
    kinds = ((Count, "counts"), (Positions, "positions"), (Weight, "weights"), (Layer, "layers"))
    return {part: f"{name}[{i}]" for kind, name in kinds for i, part in enumerate(form.program.parts[kind])}


def _alone(form: GraphForm, wanted: Sequence[str]) -> set[str]:
    """The blocks that one tensor of the image goes into and one comes out of, and that are called in one go."""
    program, found = form.program, set()
    of_image = set(program.inputs)
    for statement in program.statements:
        asks = any(isinstance(part, str) and re.search(r"\brows\b", part) for part in statement.parts)
        if asks or not of_image.isdisjoint(statement.uses):
            of_image.add(statement.name)
    for block in wanted:
        places = [i for i, s in enumerate(program.statements) if s.blocks and s.blocks[0] == block]
        bypass = program.bypasses.get(block)
        if (
            bypass is None
            or not places
            or places[-1] - places[0] + 1 != len(places)
            or len(bypass.given) != 1
        ):
            continue
        own = program.statements[places[0] : places[-1] + 1]
        inside = {statement.name for statement in own}
        after = {name for s in program.statements[places[-1] + 1 :] for name in s.uses} | set(
            program.answer_uses
        )
        needed = {name for s in own for name in s.uses} - inside
        if needed & of_image == set(bypass.given) and inside & after == set(bypass.outputs):
            found.add(block)
    return found


class GraphRun:
    """A model of the graph form at its largest, run stage by stage; the tensors are the model's own.

    Args:
        model: that runs the graph.
        supernet: whose groups these are.
        paths: of the blocks that may be skipped for an input.

    Raises:
        InvalidInput: none of them is a stage of its own.
    """

    def __init__(self, model: nn.Module, supernet: Supernet, paths: Sequence[str]) -> None:
        self.model = [model]  # no module of whoever holds this
        self.units: dict[str, Any] = dict(supernet.units_of(supernet.space.largest()))
        self.program = StagedProgram(supernet.form_of(supernet.space.largest()), paths)
        if not self.program.blocks:
            raise InvalidInput(
                "no block of this network can be skipped for an input by itself: each needs more than one tensor of "
                'the image; use method = "ds"'
            )
        self.told: Told | None = None

    def run(self, image: Tensor, run_block: RunBlock) -> Any:
        """The network's answer, with `run_block` in place of each block."""
        self.told = self.program.told(self.model[0], self.units)
        return self.program.run(self.told, image, run_block)

    def block(self, number: int) -> GraphBlock:
        """The block of that number, to be called inside of a run or after one."""
        return GraphBlock(self, number)

    @torch.no_grad()
    def inputs(self, example: Tensor) -> dict[str, Tensor]:
        """What comes into each block for an example, in the order of the calls."""
        seen: dict[str, Tensor] = {}

        def note(number: int, x: Tensor) -> Tensor:
            seen[self.program.blocks[number]] = x
            return self.program.run_block(
                number, self.told or self.program.told(self.model[0], self.units), x
            )

        self.run(example, note)
        return seen

    def first_layer(self, path: str) -> nn.Module | None:
        """The layer that a block calls first."""
        [stage] = [stage for stage in self.program.stages if stage.block == path]
        return self.model[0].get_submodule(stage.paths[0]) if stage.paths else None


class GraphBlock:
    """One block of a graph, whole or with some units of its inner groups."""

    def __init__(self, graph: GraphRun, number: int) -> None:
        self.graph, self.number = graph, number
        self.kept: Told | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """What the block makes of its input."""
        told = self.kept or self.graph.told
        assert told is not None
        return self.graph.program.run_block(self.number, told, x)

    def keep(self, units: Mapping[str, np.ndarray] | None) -> None:
        """Which units of each inner group it keeps from now on; None: all."""
        graph = self.graph
        self.kept = None if units is None else graph.program.told(graph.model[0], {**graph.units, **units})

    def layer(self, path: str) -> nn.Module:
        """One of its layers, by path in the whole network."""
        return self.graph.model[0].get_submodule(path)
