"""Which channels stand and fall together: a union-find over single channels."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


class Channels:
    """Channel variables; every position of every tensor refers to one of them.

    Uniting two channels says that a sub-net keeps both or neither; freezing one says that every sub-net
    keeps it. Working channel by channel makes concatenation, grouped convolution, flattening and the like
    ordinary cases.
    """

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._reasons: dict[int, str] = {}  # root -> why its channels are fixed
        self._roots: np.ndarray | None = None  # of all channels, until the next change
        self._asked = 0  # since the last change

    def new(self, count: int) -> np.ndarray:
        """`count` fresh channels, int64 `[count]`."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        self._roots, self._asked = None, 0
        return np.arange(first, first + count)

    def root(self, channel: int) -> int:
        """The representative of the channel's class."""
        parent = self._parent
        while parent[channel] != channel:
            parent[channel] = parent[parent[channel]]
            channel = parent[channel]
        return channel

    def roots(self, channels: np.ndarray) -> np.ndarray:
        """Representatives, int64, the shape of `channels`."""
        if self._roots is None:
            self._asked += channels.size
            if self._asked < len(self._parent):
                return np.array([self.root(c) for c in channels.tolist()], dtype=np.int64)
            self._roots = np.array([self.root(c) for c in range(len(self._parent))], dtype=np.int64)
        return self._roots[channels]

    def unite(self, a: Iterable[int], b: Iterable[int]) -> None:
        """Couples the channels of `a` with those of `b`, position by position."""
        for left, right in zip(a, b, strict=True):
            i, j = self.root(int(left)), self.root(int(right))
            if i != j:
                first, second = min(i, j), max(i, j)
                self._parent[second] = first
                self._roots, self._asked = None, 0
                if second in self._reasons:
                    self._reasons.setdefault(first, self._reasons.pop(second))

    def freeze(self, channels: np.ndarray, reason: str) -> None:
        """Keeps these channels in every sub-net; the first reason given is the one reported."""
        for channel in channels.tolist():
            self._reasons.setdefault(self.root(channel), reason)

    def reason(self, channel: int) -> str | None:
        """Why the channel is in every sub-net, or None where it is elastic."""
        return self._reasons.get(self.root(channel))
