"""Channels of tensors of any shape: which channel each element belongs to.

A factor is an array of channel ids that broadcasts against a tensor: its size is 1 along axes that do not matter.
An element is in a sub-net if, for each factor, the channel it belongs to is. A stream of shape [B, N, C] has one
factor [1, 1, C]; queries reshaped to [B, N, heads, D] have one over two axes, [1, 1, heads, D], until attention
couples what belongs to a head. In the end every factor varies along one axis: what is kept is then a dense tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from subnet_search.elastic.channels import Channels

Factor = Tensor  # int64, ids of `Channels`, broadcastable against its tensor
Factors = tuple[Factor, ...]


def axes_of(factor: Factor) -> tuple[int, ...]:
    """The axes along which a factor varies (it has been compressed)."""
    return tuple(axis for axis, size in enumerate(factor.shape) if size > 1)


def compressed(factor: Factor) -> Factor:
    """The same with size 1 along every axis where the ids are alike."""
    for axis, size in enumerate(factor.shape):
        if size > 1:
            first = factor.narrow(axis, 0, 1)
            if bool((factor == first).all()):
                factor = first
    return factor


class Labels:
    """What is done to the factors of tensors: uniting, fixing, and keeping them dense."""

    def __init__(self, channels: Channels) -> None:
        self.channels = channels

    def roots(self, factor: Factor) -> Factor:
        """Representatives instead of ids, compressed."""
        ids, inverse = factor.unique(return_inverse=True)
        roots = torch.from_numpy(self.channels.roots(ids.numpy()))
        return compressed(roots[inverse])

    def unite(self, a: Factor, b: Factor) -> None:
        """Couples two factors element by element."""
        a, b = torch.broadcast_tensors(a, b)
        base = int(b.max()) + 1
        pairs = (
            a.flatten() * base + b.flatten()
        ).unique()  # a pair in one number: far faster than unique(dim=1)
        self.channels.unite((pairs // base).numpy(), (pairs % base).numpy())

    def freeze(self, factors: Sequence[Factor], reason: str) -> None:
        """Keeps all channels of these factors in every sub-net."""
        for factor in factors:
            self.channels.freeze(factor.unique().numpy(), reason)

    def collapse(self, factor: Factor, axis: int) -> Factor:
        """Couples everything along an axis; returns the factor without it."""
        first = factor.narrow(axis, 0, 1)
        if factor.shape[axis] > 1:
            self.unite(factor, first)
        return compressed(first)

    def restrict(self, factors: Factors, axis: int, reason: str) -> Factors:
        """Sees to it that nothing varies along an axis: what also varies along another keeps only that freedom."""
        kept: list[Factor] = []
        for factor in map(self.roots, factors):
            if factor.shape[axis] == 1:
                kept.append(factor)
            elif len(axes_of(factor)) > 1:
                kept.append(self.collapse(factor, axis))
            else:
                self.freeze([factor], reason)
        return tuple(kept)

    def along(self, factors: Factors, axis: int) -> Factor | None:
        """The factor that varies along an axis, if there is one; of several the first (they were kept apart)."""
        return next((f for f in factors if f.shape[axis] > 1), None)
