"""Gates on units and blocks, through which a ranking asks what the loss would lose without them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subnet_search.batches import device_of
from subnet_search.elastic.operations.program import out_of
from subnet_search.elastic.supernet import Supernet
from subnet_search.modes import evaluation_mode
from subnet_search.ranking.ends import Attach, Change, End, around, ends
from subnet_search.ranking.rows import Rows, beside, find_rows


class Gates:
    """A gate on every unit and on what every skippable block adds: the units of all groups in a row, then the blocks.

    With `shift` s `[B, count]` set, a unit's channels are multiplied by 1 + s where they end, and a block answers
    y + s (y - x) instead of y to x. A shift of -1 is what leaving the unit or the block out does, 0 changes nothing.
    Only the largest sub-net has all gates.
    """

    def __init__(self, supernet: Supernet) -> None:
        self._supernet = supernet
        sizes = [group.units for group in supernet.groups.values()]
        self._first = dict(zip(supernet.groups, [0, *itertools.accumulate(sizes)], strict=False))
        self._units = sum(sizes)
        self.count = self._units + len(supernet.blocks)
        self.shift: Tensor | None = None  # of the batch at hand
        self._rows: dict[End | str, Rows | None] = {}  # of ends, and of what comes out of blocks

    def by_name(self, values: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Values `[count]` of units by group and of blocks by path."""
        groups = self._supernet.groups
        units = {
            name: values[first : first + groups[name].units].clone() for name, first in self._first.items()
        }
        return units, dict(zip(self._supernet.blocks, values[self._units :].tolist(), strict=True))

    @contextmanager
    def open(self) -> Iterator[None]:
        """The gates act on every call inside the scope: of the largest net in evaluation mode, its weights frozen."""
        net = self._supernet
        largest = net.subnet(net.space.largest())
        with _frozen(net), evaluation_mode(net), largest, self._attached(), torch.enable_grad():
            yield

    @contextmanager
    def _attached(self) -> Iterator[None]:
        found = ends(self._supernet)
        blocks = {block: around(self._supernet, block) for block in self._supernet.blocks}
        places: dict[End | str, Attach] = {end: end.attach for end in found}
        places |= {
            out_of(block, i): after for block, pairs in blocks.items() for i, (_, after) in enumerate(pairs)
        }
        self._rows = find_rows(self._supernet, places)
        with ExitStack() as attached:
            for end, groups in found.items():
                attached.callback(end.attach(self._scaling(end, groups)))
            for gate, (block, pairs) in enumerate(blocks.items(), start=self._units):
                for i, (before, after) in enumerate(pairs):
                    inputs = list[Tensor]()
                    attached.callback(before(_noting(inputs)))
                    attached.callback(after(self._adding(out_of(block, i), gate, inputs)))
            attached.callback(setattr, self, "shift", None)
            yield

    def _scaling(self, end: End, groups: list[str]) -> Change:
        """Multiplies what is read of these groups by 1 + shift."""
        reads = end.reads
        first = [self._first[name] if name in groups else self.count for name in reads.groups]
        offset = np.array([*first, self.count])[reads.group_at]
        place = np.where(offset < self.count, offset + reads.unit_at, self.count)  # count: no gate
        at = torch.from_numpy(place).to(device_of(self._supernet))

        def change(x: Tensor) -> Tensor:
            assert self.shift is not None
            factor = 1 + F.pad(self.shift, (0, 1)).index_select(1, at)  # [B, channels read]
            return x * beside(factor, x, end.axis, self._rows_of(end, x)).to(x.dtype)

        return change

    def _adding(self, place: str, gate: int, inputs: list[Tensor]) -> Change:
        """Makes y + shift (y - x) of a block's answer y to the last x noted."""

        def change(y: Tensor) -> Tensor:
            assert self.shift is not None
            x, shift = inputs.pop(), self.shift[:, gate : gate + 1]
            return y + beside(shift, y, -1, self._rows_of(place, y)).to(y.dtype) * (y - x)

        return change

    def _rows_of(self, place: End | str, x: Tensor) -> Rows | None:
        """What was found out; by default the images are the first axis, where that has their size."""
        assert self.shift is not None
        return self._rows.get(place, Rows(0, 1) if len(x) == len(self.shift) else None)


def _noting(inputs: list[Tensor]) -> Change:
    """Notes a copy of a block's input, which the block may change in place."""

    def note(x: Tensor) -> Tensor:
        inputs.append(x.clone())
        return x

    return note


@contextmanager
def _frozen(net: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient inside the scope."""
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
