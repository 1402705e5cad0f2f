"""Gates on units and blocks, through which a ranking asks what the loss would lose without them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subnet_search.batches import device_of
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure.accuracy import evaluation_mode
from subnet_search.ranking.scores import ends


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
        with _frozen(net), evaluation_mode(net), largest, self._hooked(), torch.enable_grad():
            yield

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        model = self._supernet.model
        hooks = [
            model.get_submodule(path).register_forward_pre_hook(self._before(path, groups), with_kwargs=True)
            for path, groups in self._ends().items()
        ]
        for place, path in enumerate(self._supernet.blocks, start=self._units):
            block, inputs = model.get_submodule(path), list[Tensor]()
            hooks.append(block.register_forward_pre_hook(_noting(inputs), with_kwargs=True))
            hooks.append(block.register_forward_hook(self._after(place, inputs)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self.shift = None

    def _ends(self) -> dict[str, list[str]]:
        """The layers in which channels of groups end, by path, with these groups."""
        found: dict[str, list[str]] = {}
        for name in self._supernet.groups:
            for path in ends(self._supernet, name):
                found.setdefault(path, []).append(name)
        return found

    def _before(self, path: str, groups: list[str]) -> Callable[..., Any]:
        """A hook that multiplies what a layer reads of these groups by 1 + shift."""
        reads = self._supernet.sites[path].reads
        assert reads is not None
        first = [self._first[name] if name in groups else self.count for name in reads.groups]
        offset = np.array([*first, self.count])[reads.group_at]
        place = np.where(offset < self.count, offset + reads.unit_at, self.count)  # count: no gate
        at = torch.from_numpy(place).to(device_of(self._supernet))
        axis = -1 if isinstance(self._supernet.model.get_submodule(path), nn.Linear) else 1

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            assert self.shift is not None
            x = args[0] if args else next(iter(kwargs.values()))
            factor = 1 + F.pad(self.shift, (0, 1)).index_select(1, at)  # [B, channels read]
            gated = x * _beside(factor, x, axis).to(x.dtype)
            return ((gated, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): gated})

        return hook

    def _after(self, place: int, inputs: list[Tensor]) -> Callable[..., Any]:
        """A hook that makes y + shift (y - x) of a block's answer y to the last x noted."""

        def hook(_: nn.Module, __: Any, y: Tensor) -> Any:
            assert self.shift is not None
            x = inputs.pop()
            return y + _beside(self.shift[:, place : place + 1], y, 1).to(y.dtype) * (y - x)

        return hook


def _noting(inputs: list[Tensor]) -> Callable[..., None]:
    """A hook that notes a copy of a block's input, which the block may change in place."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        (x,) = (*args, *kwargs.values())
        inputs.append(x.clone())

    return hook


def _beside(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """Values `[B, C]`, C or 1 channels, shaped to multiply x `[B, ...]` along an axis.

    Where the batch is not the first axis of x, all of it has the values of the first image.
    """
    values = values if len(x) == len(values) else values[:1]
    shape = [len(values), *[1] * (x.ndim - 1)]
    shape[axis] = values.shape[1]
    return values.reshape(shape)


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
