"""Where channels end in a supernet, and how to change the tensors that come there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from subnet_search.elastic.grouped import makes_thinner
from subnet_search.elastic.groups import ChannelMap
from subnet_search.elastic.operations.graph_form import RunsGraph, Taps
from subnet_search.elastic.operations.program import Tap, into, out_of
from subnet_search.elastic.padding import PaddedShortcut
from subnet_search.elastic.supernet import Supernet

Change = Callable[[Tensor], Tensor]  # what is made of a tensor that passes
Attach = Callable[[Change], Callable[[], object]]  # puts a change in place; what it returns takes it away


@dataclass(frozen=True, eq=False)
class End:
    """A layer, or an operator that is no layer's, which takes in channels and mixes them or pads them with zeros.

    Attributes:
        attach: changes what it takes in.
        reads: the channels along the axis of what it takes in.
        axis: that axis.
        path: of the layer; empty for an operator.
        hands_on: whether it is a convolution in groups that go as a whole, with what they write.
    """

    attach: Attach
    reads: ChannelMap
    axis: int
    path: str = ""
    hands_on: bool = False


def ends(supernet: Supernet) -> dict[End, list[str]]:
    """The places where channels end, each with the groups that end there.

    Convolutions in groups that hand channels on are left out, unless there is no other.
    """
    found: dict[End, list[str]] = {end: [] for end in (*_layers(supernet), *_operators(supernet))}
    for name, group in supernet.groups.items():
        taking = [end for end in found if name in end.reads.groups]
        last = [end for end in taking if not end.hands_on or end.path not in group.writers]
        for end in last or taking:
            found[end].append(name)
    return {end: groups for end, groups in found.items() if groups}


def around(supernet: Supernet, block: str) -> list[tuple[Attach, Attach]]:
    """How to change what a skippable block would hand on, and what comes out of it instead; of each of its answers."""
    model = supernet.model
    if isinstance(model, RunsGraph):
        taps, numbers = model.taps, range(len(model.graph_form.program.bypasses[block].outputs))
        return [
            (partial(_passing, taps, into(block, i)), partial(_passing, taps, out_of(block, i)))
            for i in numbers
        ]
    module: Any = model.get_submodule(block)
    places = (0,) if module.detour is None else module.detour.places
    answers = [None] if module.detour is None or module.detour.packed is None else range(len(places))
    return [
        (partial(_coming_in, module, place=place), partial(_coming_out, module, number=number))
        for place, number in zip(places, answers, strict=True)
    ]


def _layers(supernet: Supernet) -> list[End]:
    found = []
    for path, site in supernet.sites.items():
        layer = supernet.model.get_submodule(path)
        if site.reads is not None and isinstance(layer, _ConvNd | nn.Linear | PaddedShortcut):
            axis = 1 if isinstance(layer, PaddedShortcut) else -1 - len(getattr(layer, "kernel_size", ()))
            hands_on = isinstance(layer, _ConvNd) and not makes_thinner(layer)
            found.append(End(partial(_coming_in, layer), site.reads, axis, path, hands_on))
    return found


def _operators(supernet: Supernet) -> list[End]:
    model = supernet.model
    if not isinstance(model, RunsGraph):
        return []
    taps: list[Tap] = model.graph_form.program.parts[Tap]
    return [
        End(partial(_passing, model.taps, tap.place), tap.channel_map, tap.axis)
        for tap in taps
        if tap.channel_map is not None
    ]


def _passing(taps: Taps, place: str, change: Change) -> Callable[[], object]:
    taps[place] = change
    return partial(taps.pop, place)


def _coming_in(module: nn.Module, change: Change, place: int | str = 0) -> Callable[[], object]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = next(iter(kwargs)) if place == 0 and not args else place
        if isinstance(name, str):
            return args, {**kwargs, name: change(kwargs[name])}
        return (*args[:name], change(args[name]), *args[name + 1 :]), kwargs

    return module.register_forward_pre_hook(hook, with_kwargs=True).remove


def _coming_out(module: nn.Module, change: Change, number: int | None = None) -> Callable[[], object]:
    """Changes what a module answers, or one of its answers."""

    def hook(_: nn.Module, __: Any, answer: Any) -> Any:
        if number is None:
            return change(answer)
        return type(answer)([*answer[:number], change(answer[number]), *answer[number + 1 :]])

    return module.register_forward_hook(hook).remove
