"""What is known of an exported graph's channels while its operators are followed, and how operators are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from subnet_search.elastic.channels import Channels
from subnet_search.elastic.operations.exported import Exported
from subnet_search.elastic.operations.labels import Factor, Factors, Labels, axes_of

Given = dict[str, Any]  # an operator's arguments by the names of its schema
Rule = Callable[["LabelFlow", fx.Node, Given], Factors | list[Factors]]


@dataclass
class LabelFlow:
    """What the rules found out about an exported graph.

    Attributes:
        traced: the graph.
        factors: of every node that carries channels; a list for several outputs.
        reads: channel ids `[size]` of each layer's input channels, by path.
        writes: the same of outputs; a parameter used as a weight without a layer of its own writes, too.
        parameters: factors of the parameters that no layer of ours slices, by name.
        nodes: the calls of each layer.
        weights: the parameter behind each writer that is no layer.
    """

    traced: Exported
    channels: Channels = field(default_factory=Channels)
    factors: dict[fx.Node, Factors | list[Factors]] = field(default_factory=dict)
    reads: dict[str, np.ndarray] = field(default_factory=dict)
    writes: dict[str, np.ndarray] = field(default_factory=dict)
    parameters: dict[str, Factors] = field(default_factory=dict)
    nodes: dict[str, list[fx.Node]] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.labels = Labels(self.channels)

    def of(self, value: Any) -> Factors:
        """Factors of a tensor argument."""
        found = self.factors.get(value, ()) if isinstance(value, fx.Node) else ()
        return found if isinstance(found, tuple) else ()

    def axes(self, node: fx.Node) -> list[tuple[int, np.ndarray]]:
        """The axes of the node's tensor that carry channels, each with the ids along it (once all is dense)."""
        found: dict[int, np.ndarray] = {}
        for factor in map(self.labels.roots, self.of(node)):
            for axis in axes_of(factor):  # of two kinds along one axis the second is fixed
                found.setdefault(axis, factor.flatten().numpy())
        return list(found.items())

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Shape of the node's tensor at batch 1."""
        shape: tuple[int, ...] = node.meta["shape"]
        return shape

    def module(self, node: fx.Node) -> nn.Module:
        """The layer that the node calls."""
        return self.traced.module(node)

    def fresh(self, size: int, axis: int, rank: int) -> Factor:
        """A factor of new channels along one axis."""
        return along_axis(self.channels.new(size), axis, rank)

    def ids_along(self, x: fx.Node, axis: int) -> tuple[np.ndarray, Factors]:
        """Channel ids `[size]` along an axis of a tensor (fixed ones where nothing is elastic), and other factors."""
        shape = self.shape(x)
        axis %= len(shape)
        factors = tuple(map(self.labels.roots, self.of(x)))
        if any(f.shape[axis] > 1 and len(axes_of(f)) > 1 for f in factors):
            reason = f"{x.name} has two kinds of channels along one axis"
            factors = self.labels.restrict(factors, axis, reason)
        others = tuple(f for f in factors if f.shape[axis] == 1)
        factor = self.labels.along(factors, axis)
        if factor is not None:
            return factor.flatten().numpy(), others
        ids = self.channels.new(shape[axis])
        self.channels.freeze(ids, f"what it reads is not elastic along that axis ({x.name})")
        return ids, others

    def read(self, node: fx.Node, ids: np.ndarray) -> None:
        """Notes that the layer called by `node` reads these channels (again, if it is called again)."""
        path = str(node.target)
        self.nodes.setdefault(path, []).append(node)
        if path in self.reads:
            self.channels.unite(self.reads[path], ids)
        self.reads[path] = ids

    def freeze(self, node: Any, reason: str) -> None:
        """Keeps all channels of a tensor (or of several outputs)."""
        found = self.factors.get(node, ()) if isinstance(node, fx.Node) else ()
        for factors in [found] if isinstance(found, tuple) else found:
            self.labels.freeze(factors, reason)


def along_axis(ids: np.ndarray, axis: int, rank: int) -> Factor:
    """Ids `[size]` as a factor along one axis of a tensor."""
    shape = [1] * rank
    shape[axis] = len(ids)
    return torch.from_numpy(np.asarray(ids, dtype=np.int64)).reshape(shape)


def arguments(node: fx.Node) -> Given:
    """The arguments of an operator by name, with defaults."""
    schema = node.target._schema  # type: ignore[union-attr]
    given = {a.name: a.default_value for a in schema.arguments}
    given |= dict(zip([a.name for a in schema.arguments], node.args, strict=False))
    return given | dict(node.kwargs)


def at_one_row(number: Any) -> Any:
    """A number at batch 1, if it grows with the batch."""
    return number.meta["number"][0] if isinstance(number, fx.Node) else number


def name_of(node: fx.Node) -> str:
    """The operator of a node, for people."""
    return str(getattr(node.target, "overloadpacket", node.target)).removeprefix("aten.")


def first_of(given: Given) -> Any:
    """The tensor that an operator works on."""
    return next(iter(given.values()))
