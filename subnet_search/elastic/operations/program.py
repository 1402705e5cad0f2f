"""The exported graph as Python source, with the sizes that sub-nets change left open.

The same statements serve twice. A supernet runs them with `counts`, `indices`, `weights` and `kept_blocks` looked up,
so that another sub-net is a matter of other numbers; an extracted sub-net has its own numbers written out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from subnet_search.elastic.groups import ChannelMap


@dataclass(frozen=True)
class Count:
    """How many of the positions `start` to `stop` of an axis a sub-net keeps."""

    channel_map: ChannelMap
    start: int
    stop: int
    per: int = 1

    def value(self, units: Mapping[str, int]) -> int:
        """The number for a sub-net."""
        return int(self.channel_map.mask(units)[self.start : self.stop].sum()) // self.per


@dataclass(frozen=True)
class Positions:
    """Where a list of positions of one axis stands after a sub-net has left some out."""

    channel_map: ChannelMap
    positions: tuple[int, ...]

    def value(self, units: Mapping[str, int]) -> Tensor:
        """The new positions of those that are kept, int64."""
        mask = self.channel_map.mask(units)
        new = np.cumsum(mask) - 1
        positions = np.array(self.positions, dtype=np.int64)
        return torch.from_numpy(new[positions[mask[positions]]])


@dataclass(frozen=True)
class Weight:
    """A parameter, buffer or constant by name."""

    name: str


@dataclass(frozen=True)
class Layer:
    """The call of a layer by path."""

    path: str


@dataclass(frozen=True)
class Tap:
    """A variable on its way into a product that is no layer's, or into or out of a block; there it can be changed."""

    place: str
    variable: str
    axis: int = 0  # the one that a product sums over, from the end
    channel_map: ChannelMap | None = None  # along that axis


def into(what: str, number: int = 0) -> str:
    """The place where a tensor goes into an operator, or the one into a block that skipping hands on."""
    return f"into {what}" if number == 0 else f"into {what}, {number}"


def out_of(block: str, number: int = 0) -> str:
    """The place where a tensor comes out of a block; a block of several answers has a number for each."""
    return f"out of {block}" if number == 0 else f"out of {block}, {number}"


Part = str | Count | Positions | Weight | Layer | Tap


@dataclass(frozen=True)
class Statement:
    """One line: a variable and what it becomes."""

    name: str
    parts: tuple[Part, ...]
    uses: tuple[str, ...]
    blocks: tuple[str, ...]  # the skippable blocks around it, outermost first


@dataclass(frozen=True)
class Bypass:
    """What a skipped block answers: each of its outputs is one of its inputs."""

    outputs: tuple[str, ...]
    given: tuple[str, ...]

    @property
    def pairs(self) -> list[tuple[int, str, str]]:
        """Number, output and input of each."""
        return list(zip(range(len(self.outputs)), self.outputs, self.given, strict=True))


@dataclass(frozen=True, eq=False)
class Program:
    """The statements of a forward.

    Attributes:
        inputs: names of the tensors that come in.
        statements: in order.
        bypasses: by the path of the skippable block.
        answer: what is returned, as source with the names of variables.
        answer_uses: those variables.
    """

    inputs: tuple[str, ...]
    statements: tuple[Statement, ...]
    bypasses: Mapping[str, Bypass]
    answer: str
    answer_uses: tuple[str, ...]

    @cached_property
    def parts(self) -> dict[type, list[Any]]:
        """All parts of each kind, each once, in order."""
        found = dict.fromkeys(part for statement in self.statements for part in statement.parts)
        return {
            kind: [p for p in found if isinstance(p, kind)] for kind in (Count, Positions, Weight, Layer, Tap)
        }

    @cached_property
    def foreign_operators(self) -> tuple[str, ...]:
        """The operators that are not torch's own, as they are called."""
        begun = [s.parts[0] for s in self.statements if s.parts]
        return tuple(
            dict.fromkeys(p[:-1] for p in begun if isinstance(p, str) and p.startswith("torch.ops."))
        )

    def lines(self, text: Callable[[Part], str], skipped: Sequence[str] | None) -> Iterator[str]:
        """The body of the forward.

        Args:
            text: how a part is written.
            skipped: the blocks that are left out; None asks at run time, whether a block is in `kept_blocks`.
        """
        if self.inputs:
            yield f"rows, device = {self.inputs[0]}.shape[0], {self.inputs[0]}.device"
        if skipped is None:
            yield from self._asking(text)
            return
        chosen: list[tuple[str, str, tuple[str, ...]]] = []  # name, source, uses
        done: set[str] = set()
        for statement in self.statements:
            around = next((b for b in statement.blocks if b in skipped), None)
            if around is None:
                chosen.append((statement.name, "".join(map(text, statement.parts)), statement.uses))
            elif around not in done:
                done.add(around)
                chosen += [(out, given, (given,)) for _, out, given in self.bypasses[around].pairs]
        last = {name: i for i, (_, _, uses) in enumerate(chosen) for name in uses}
        for i, (name, source, uses) in enumerate(chosen):
            yield f"{name} = {source}"
            over = [
                u for u in dict.fromkeys((*uses, name)) if last.get(u, i) == i and u not in self.answer_uses
            ]
            if over and name in over and name not in uses and name not in last:
                over.remove(name)  # nothing reads it, but it may be written into
            if over:
                yield f"{' = '.join(over)} = None"
        yield f"return {self.answer}"

    def _asking(self, text: Callable[[Part], str]) -> Iterator[str]:
        open_blocks: tuple[str, ...] = ()
        last = {name: i for i, statement in enumerate(self.statements) for name in statement.uses}
        for given in (name for bypass in self.bypasses.values() for name in bypass.given):
            last[given] = len(self.statements)
        for i, statement in enumerate(self.statements):
            common = 0
            while common < min(len(open_blocks), len(statement.blocks)) and (
                open_blocks[common] == statement.blocks[common]
            ):
                common += 1
            yield from self._closed(text, open_blocks, common)
            for depth in range(common, len(statement.blocks)):
                block = statement.blocks[depth]
                yield f"{'    ' * depth}if {block!r} in kept_blocks:"
                for i, _, given in self.bypasses[block].pairs:
                    yield f"{'    ' * (depth + 1)}{text(Tap(into(block, i), given))}"
            open_blocks = statement.blocks
            indent = "    " * len(open_blocks)
            yield f"{indent}{statement.name} = {''.join(map(text, statement.parts))}"
            over = [u for u in dict.fromkeys(statement.uses) if last[u] == i and u not in self.answer_uses]
            if over:
                yield f"{indent}{' = '.join(over)} = None"
        yield from self._closed(text, open_blocks, 0)
        yield f"return {self.answer}"

    def _closed(self, text: Callable[[Part], str], open_blocks: Sequence[str], keep: int) -> Iterator[str]:
        for depth in reversed(range(keep, len(open_blocks))):
            block, indent = open_blocks[depth], "    " * depth
            pairs = self.bypasses[block].pairs
            yield from (f"{indent}    {out} = {text(Tap(out_of(block, i), out))}" for i, out, _ in pairs)
            yield f"{indent}else:"
            yield from (f"{indent}    {out} = {given}" for _, out, given in pairs)
