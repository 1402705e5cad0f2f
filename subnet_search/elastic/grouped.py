"""Convolutions in groups: sub-nets drop whole groups, or make every group thinner."""

from __future__ import annotations

from typing import Any

import numpy as np

from subnet_search.elastic.channels import Channels
from subnet_search.elastic.groups import Kept


def makes_thinner(conv: Any) -> bool:
    """Whether sub-nets keep all groups of a convolution and make each thinner.

    That is so where a group has more channels than there are groups; else whole groups go, which for a depthwise
    convolution are single channels. A convolution without groups is one group that gets thinner.
    """
    groups: int = conv.groups
    return groups == 1 or groups < min(conv.in_channels, conv.out_channels) // groups


def couple_groups(channels: Channels, inputs: np.ndarray, outputs: np.ndarray, conv: Any) -> None:
    """Couples the channels `[in_channels]` and `[out_channels]` of a convolution that go together."""
    if not makes_thinner(conv):
        couple_whole_groups(channels, inputs, outputs, conv.groups)
        return
    for ids in (inputs.reshape(conv.groups, -1), outputs.reshape(conv.groups, -1)):
        for others in ids[1:]:  # the same place in every group
            channels.unite(ids[0], others)


def couple_whole_groups(channels: Channels, inputs: np.ndarray, outputs: np.ndarray, groups: int) -> None:
    """Each group stands and falls as a whole, with what it reads and what it writes."""
    if groups > 1:
        for read, written in zip(inputs.reshape(groups, -1), outputs.reshape(groups, -1), strict=True):
            members = np.concatenate([read, written])
            channels.unite(members[:-1], members[1:])


def kept_groups(conv: Any, outputs: int) -> int:
    """The number of groups of a convolution that keeps so many outputs."""
    groups: int = conv.groups
    return groups if makes_thinner(conv) else groups * outputs // conv.out_channels


def kept_in_group(conv: Any, inputs: Kept) -> Kept:
    """The kept positions along axis 1 of a convolution's weight, which holds the inputs of one group."""
    if conv.groups == 1 or inputs is None:
        return inputs
    if isinstance(inputs, slice) or not makes_thinner(conv):
        return None
    first = inputs[: len(inputs) // conv.groups]
    return slice(0, len(first)) if int(first[-1]) == len(first) - 1 else first
