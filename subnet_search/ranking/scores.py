"""What a ranking is, and how it follows from scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from subnet_search.data import Batch
from subnet_search.elastic.padding import PaddedShortcut
from subnet_search.elastic.supernet import Supernet

Ranking = Mapping[str, Tensor]  # group -> order over its units, int64 [group.units], best first
Scores = Mapping[str, Tensor]  # group -> importance of its units, float64 [group.units]
Ranker = Callable[[Supernet, Iterable[Batch]], Ranking]


def best_first(scores: Scores) -> Ranking:
    """The order of falling scores; equal ones keep their order."""
    return {name: score.argsort(descending=True, stable=True) for name, score in scores.items()}


def weighted(supernet: Supernet, paths: Iterable[str]) -> dict[str, _ConvNd | nn.Linear]:
    """Those of the layers that are convolutions or linear."""
    layers = {path: supernet.model.get_submodule(path) for path in paths}
    return {path: layer for path, layer in layers.items() if isinstance(layer, _ConvNd | nn.Linear)}


def ends(supernet: Supernet, name: str) -> tuple[str, ...]:
    """The layers in which a group's channels end: all that take them in and mix them, or pad them with zeros.

    Layers that hand channels on (depthwise and other grouped convolutions) are left out, unless there is no other.
    """
    group = supernet.groups[name]
    layers = {path: supernet.model.get_submodule(path) for path in group.readers}
    taking = {path: m for path, m in layers.items() if isinstance(m, _ConvNd | nn.Linear | PaddedShortcut)}
    handing_on = {path for path, m in taking.items() if path in group.writers and getattr(m, "groups", 1) > 1}
    return tuple(path for path in taking if path not in handing_on) or tuple(taking)


def norms(supernet: Supernet, paths: Iterable[str]) -> dict[str, _BatchNorm]:
    """Those of the layers that are batch norms with a scale."""
    layers = {path: supernet.model.get_submodule(path) for path in paths}
    return {path: m for path, m in layers.items() if isinstance(m, _BatchNorm) and m.weight is not None}


def per_output(values: Tensor) -> Tensor:
    """Adds up values of a layer's weight `[out, in / groups, ...]` per output channel, `[out]`."""
    return values.flatten(1).sum(dim=1)


def new_scores(supernet: Supernet) -> dict[str, Tensor]:
    """Zeros for every group, float64 `[group.units]`."""
    return {name: torch.zeros(group.units, dtype=torch.float64) for name, group in supernet.groups.items()}
