"""Follows the channels of every tensor through a traced graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np
from torch import fx, nn

from subnet_search.elastic.channels import Channels
from subnet_search.elastic.graph import Traced


class Layout(NamedTuple):
    """Which axis of a tensor carries channels, and which channel stands at each position."""

    axis: int
    ids: np.ndarray  # int64 [size of that axis]


@dataclass
class Flow:
    """What the rules found out: the channels each layer reads and writes.

    `reads[path]` and `writes[path]` hold channel ids per position of the layer's input and output;
    `nodes[path]` are the graph nodes that call the layer.
    """

    traced: Traced
    channels: Channels = field(default_factory=Channels)
    layouts: dict[fx.Node, Layout] = field(default_factory=dict)
    reads: dict[str, np.ndarray] = field(default_factory=dict)
    writes: dict[str, np.ndarray] = field(default_factory=dict)
    nodes: dict[str, list[fx.Node]] = field(default_factory=dict)

    def module(self, node: fx.Node) -> nn.Module:
        """The leaf module that the node calls."""
        return self.traced.module(node)

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Shape of the node's tensor at batch 1."""
        shape: tuple[int, ...] = node.meta["shape"]
        return shape

    def shape_or_none(self, node: fx.Node) -> tuple[int, ...] | None:
        """The same, or None for a value that is no tensor."""
        shape: tuple[int, ...] | None = node.meta["shape"]
        return shape

    def layout(self, node: fx.Node, axis: int) -> Layout:
        """The node's layout if its channels lie on `axis`; otherwise a fixed one."""
        known = self.layouts.get(node)
        if known is not None and known.axis == axis:
            return known
        self.freeze([node], f"{node.name} carries its channels on another axis")
        ids = self.channels.new(self.shape(node)[axis])
        self.channels.freeze(ids, f"it reads {node.name}, whose channels could not be followed")
        return Layout(axis, ids)

    def axes(self, node: fx.Node) -> list[tuple[int, np.ndarray]]:
        """The axes of the node's tensor that carry channels, each with the ids along it."""
        layout = self.layouts.get(node)
        return [] if layout is None else [(layout.axis, layout.ids)]

    def read(self, node: fx.Node, ids: np.ndarray) -> None:
        """Notes that the layer called by `node` reads these channels (again, if it is called again)."""
        path = str(node.target)
        self.nodes.setdefault(path, []).append(node)
        if path in self.reads:
            self.channels.unite(self.reads[path], ids)
        self.reads[path] = ids

    def write(self, node: fx.Node, count: int) -> np.ndarray:
        """The channels that the layer called by `node` produces, `[count]`: new ones at its first call."""
        path = str(node.target)
        if path not in self.writes:
            self.writes[path] = self.channels.new(count)
        return self.writes[path]

    def freeze(self, nodes: Sequence[fx.Node], reason: str) -> None:
        """Keeps all channels of these tensors."""
        for node in nodes:
            if node in self.layouts:
                self.channels.freeze(self.layouts[node].ids, reason)


def freeze_by_settings(
    channels: Channels, writes: Mapping[str, np.ndarray], include: Sequence[str], exclude: Sequence[str]
) -> None:
    """Keeps the output of the layers that `exclude` names, and where `include` is given, of those it does not name."""
    for path, ids in writes.items():
        if matches(path, exclude):
            channels.freeze(ids, "excluded by the settings")
        elif include and not matches(path, include):
            channels.freeze(ids, "not among the paths to include")


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether a dotted path is named by a pattern, or lies inside a module that is named."""
    parts = path.split(".")
    prefixes = [".".join(parts[: end + 1]) for end in range(len(parts))]
    return any(fnmatchcase(prefix, pattern) for pattern in patterns for prefix in prefixes)
