"""What a ranking is, and how it follows from scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from search_spaces import InvalidInput
from subnet_search.data import Batch
from subnet_search.elastic.groups import ChannelMap, Group
from subnet_search.elastic.operations.graph_form import RunsGraph, tensor_of
from subnet_search.elastic.supernet import Supernet

Ranking = Mapping[str, Tensor]  # group -> order over its units, int64 [group.units], best first
Scores = Mapping[str, Tensor]  # group -> importance of its units, float64 [group.units]
Ranker = Callable[[Supernet, Iterable[Batch]], Ranking]


def best_first(scores: Scores) -> Ranking:
    """The order of falling scores; equal ones keep their order.

    Raises:
        InvalidInput: for a score that is not finite.
    """
    for name, score in scores.items():
        if not torch.isfinite(score).all():
            place = int((~torch.isfinite(score)).nonzero()[0])
            raise InvalidInput(
                f"units can be ranked where their scores are finite, got {float(score[place])} for unit {place} of "
                f"{name}; look for NaN or infinite numbers in the weights there, and in the images"
            )
    return {name: score.argsort(descending=True, stable=True) for name, score in scores.items()}


class Filters(NamedTuple):
    """A weight with the axis along which it lists filters: those that make the channels of `makes`, one each."""

    weight: Tensor
    axis: int
    makes: ChannelMap

    def sums(self, values: Tensor) -> Tensor:
        """Adds up values of the weight per filter, `[filters]`."""
        return per_output(values.movedim(self.axis, 0))

    def beside(self, values: Tensor) -> Tensor:
        """Values `[filters]`, shaped to multiply the weight."""
        return values.reshape([-1 if axis == self.axis else 1 for axis in range(self.weight.ndim)])

    def per_unit(self, group: Group, values: Tensor) -> Tensor:
        """Adds up values `[filters]` over the units of a group, float64 `[group.units]`."""
        array = values.detach().to("cpu", torch.float64).numpy()
        return torch.from_numpy(self.makes.sum_per_unit(group.name, array, group.units))


def filters(supernet: Supernet, group: Group) -> dict[str, Filters]:
    """The weights that make a group's channels, by name: of convolutions, of linear layers, and of no layer."""
    model, found = supernet.model, dict[str, Filters]()
    for path in group.writers:
        site = supernet.sites.get(path)
        layer = None if site is None else model.get_submodule(path)
        if isinstance(layer, _ConvNd | nn.Linear) and site is not None and site.writes is not None:
            found[f"{path}.weight"] = Filters(layer.weight, 0, site.writes)
        elif isinstance(model, RunsGraph) and path in model.graph_form.weights:
            name = model.graph_form.weights[path]
            weight, maps = tensor_of(model, name), model.graph_form.parameters[name]
            axis = next((axis for axis in sorted(maps) if group.name in maps[axis].groups), None)
            if axis is not None:
                found[name] = Filters(weight, axis, maps[axis])
    return found


def norms(supernet: Supernet, paths: Iterable[str]) -> dict[str, _BatchNorm]:
    """Those of the layers that are batch norms with a scale."""
    layers = {path: supernet.model.get_submodule(path) for path in paths if path in supernet.sites}
    return {path: m for path, m in layers.items() if isinstance(m, _BatchNorm) and m.weight is not None}


def per_output(values: Tensor) -> Tensor:
    """Adds up values of a weight `[out, in / groups, ...]` per output channel, `[out]`."""
    return values.flatten(1).sum(dim=1)


def new_scores(supernet: Supernet) -> dict[str, Tensor]:
    """Zeros for every group, float64 `[group.units]`."""
    return {name: torch.zeros(group.units, dtype=torch.float64) for name, group in supernet.groups.items()}
