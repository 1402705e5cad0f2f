"""Which smaller images a network takes without being another one: conversion looks at it anew at each size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, fx, nn

from search_spaces import RESOLUTION_KNOB, CostTable, InvalidInput, SearchSpace
from subnet_search.elastic.graph import Example, call_arguments, copied
from subnet_search.elastic.groups import ChannelMap, Grouping
from subnet_search.elastic.image_size import Size, lower_sizes, resized
from subnet_search.elastic.operations.exported import Exported
from subnet_search.elastic.operations.program import Layer, Program
from subnet_search.elastic.pricing import Pricing
from subnet_search.elastic.residual import handed_on
from subnet_search.elastic.terms import add


class Graph(NamedTuple):
    """What the graph form has more: the program, constants by name, the weight behind each writer that is no layer."""

    program: Program
    constants: Mapping[str, Tensor]
    weights: Mapping[str, str]


@dataclass(frozen=True)
class Look:
    """What conversion finds at one size of the example."""

    grouping: Grouping
    blocks: tuple[str, ...]
    graph: Graph | None = None

    def pricing(self, knob_of: Mapping[str, str] | None = None) -> Pricing:
        """The costs at this size; without `knob_of` each group's knob is its own."""
        knob_of = {name: name for name in self.grouping.groups} if knob_of is None else knob_of
        return Pricing(self.grouping, knob_of, self.blocks)


@dataclass(frozen=True)
class Resolutions:
    """The sizes of images below the example's that sub-nets may take.

    Attributes:
        looks: at each size that is possible, by its height, ascending.
        sizes_px: height and width of all sizes to choose from, by height, ascending; empty if there is no smaller one.
        refused: why others are not possible.
    """

    looks: Mapping[int, Look]
    sizes_px: Mapping[int, Size]
    refused: tuple[str, ...]

    @property
    def choices(self) -> tuple[int, ...]:
        """Of the resolution knob; empty: there is none."""
        return tuple(self.sizes_px)

    def table(self, whole: CostTable, knob_of: Mapping[str, str], space: SearchSpace) -> CostTable:
        """The cost table of the whole size, with those of the other ones in it."""
        lower = {height: look.pricing(knob_of).table(space) for height, look in self.looks.items()}
        names = ("macs_terms", "params_terms", "weight_bytes_terms", "peak_activation_bytes_terms")
        terms = {name: getattr(whole, name) for name in names}
        return CostTable(whole.knobs, whole.divisors, **terms, at_resolution=lower)


def find_resolutions(
    model: nn.Module,
    example: Example,
    heights: tuple[int, ...],
    excluded: Mapping[str, str],
    whole: Look,
    look: Callable[[Example], Look],
) -> Resolutions:
    """Tries every size asked for, the largest first.

    Args:
        model: to be converted.
        example: of its full size.
        heights: in pixels.
        excluded: what an earlier conversion was found not to bear, by knob.
        whole: the look at the full size.
        look: the same at another one.

    Raises:
        InvalidInput: the network takes something else than images, or a size makes no sense.
    """
    looks: dict[int, Look] = {}
    refused: dict[int, str] = {}
    lower = lower_sizes(example, heights)
    for height, size_px in lower.items():
        above = next(reversed(looks.values()), whole)
        found = _tried(model, resized(example, size_px), whole, above, look, excluded.get(RESOLUTION_KNOB))
        if isinstance(found, Look):
            looks[height] = found
        else:
            refused[height] = found
    looks = dict(sorted(looks.items()))
    sizes_px = {height: lower[height] for height in looks}
    if looks:
        assert isinstance(example, Tensor)
        sizes_px[example.shape[-2]] = (example.shape[-2], example.shape[-1])
    told = [f"no images of {lower[h][0]} x {lower[h][1]} pixels: {why}" for h, why in refused.items()]
    return Resolutions(looks, sizes_px, tuple(told))


def with_own_constants(traced: Exported, ending: str) -> Exported:
    """The graph with this ending at the names of its constants: at each size they may be others."""
    constants = {f"{name}{ending}": tensor for name, tensor in traced.constants.items()}
    for name, tensor in traced.constants.items():
        delattr(traced.model, name)
        traced.model.register_buffer(f"{name}{ending}", tensor, persistent=False)
    for node in traced.graph.nodes:
        if node.op == "get_attr" and node.target in traced.constants:
            node.target = f"{node.target}{ending}"
    return replace(traced, constants=constants)


def _tried(
    model: nn.Module,
    small: Example,
    whole: Look,
    above: Look,
    look: Callable[[Example], Look],
    known: str | None,
) -> Look | str:
    """The look at a smaller size, or why it is not possible."""
    if known is not None:
        return known
    args, kwargs = call_arguments(small)
    try:
        copied(model).eval()(*args, **kwargs)
    except Exception as error:  # user code runs here: anything can come
        return f"the network does not run on them: {_first_line(error)}"
    try:
        found = look(small)
    except InvalidInput as error:
        return _first_line(error)
    return _difference(whole, found) or _saving(above, found) or found


def _difference(whole: Look, small: Look) -> str | None:
    """In what a network is another one at a smaller size."""
    answers = [_answers(one.grouping.flow.traced.graph) for one in (whole, small)]
    if answers[0] != answers[1]:
        return f"the answer would be {answers[1]} instead of {answers[0]}"
    same = {
        "width groups": whole.grouping.groups == small.grouping.groups,
        "blocks": _blocks(whole) == _blocks(small),
        "layers": _maps(whole) == _maps(small),
        "weights": _weights(whole) == _weights(small),
        "parts": whole.grouping.flow.traced.parts == small.grouping.flow.traced.parts,
    }
    return next((f"other {what} would be elastic" for what, is_so in same.items() if not is_so), None)


def _saving(above: Look, small: Look) -> str | None:
    """Why a smaller size is not worth having: nothing, or not everything, becomes cheaper by it."""
    more, less = (add(one.pricing().node_macs().values()) for one in (above, small))
    if any(coefficient > more.get(monomial, 0) for monomial, coefficient in less.items()) or more == less:
        return "it would not take fewer multiply-adds than the size above it"
    return None


def _answers(graph: fx.Graph) -> list[tuple[int, ...] | None]:
    """The shapes of the tensors that a network answers at batch 1."""
    output = next(node for node in graph.nodes if node.op == "output")
    return [node.meta["shape"] for node in output.all_input_nodes]


def _blocks(look: Look) -> dict[str, Any]:
    """What may be skipped, and which of its inputs a skipped block hands on."""
    handed = handed_on(look.grouping.flow.traced, look.blocks)
    return {path: (len(one.outputs), one.places, one.packed) for path, one in handed.items()}


def _maps(look: Look) -> dict[str, list[Any]]:
    """The layers, what of their inputs and outputs is elastic, and which of them the graph form calls."""
    layers = {part.path for part in look.graph.program.parts[Layer]} if look.graph else set[str]()
    sites = look.grouping.sites
    return {path: [_plain(site.reads), _plain(site.writes), path in layers] for path, site in sites.items()}


def _weights(look: Look) -> list[Any]:
    """The elastic parameters of no layer; which weight stands for which writer."""
    maps = look.grouping.parameters.items()
    elastic = {name: {axis: _plain(m) for axis, m in axes.items()} for name, axes in maps}
    return [elastic, look.graph and dict(look.graph.weights)]


def _plain(channel_map: ChannelMap | None) -> Any:
    if channel_map is None:
        return None
    return channel_map.groups, *(np.asarray(a).tolist() for a in (channel_map.group_at, channel_map.unit_at))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
