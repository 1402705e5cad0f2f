"""Layers whose output group j reads input groups up to j, and the classifier of all sub-nets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces import InvalidInput


def _pattern(outputs: int, inputs: int, branches: int) -> Tensor:
    """Ones where output group j meets input groups up to j, `[outputs, inputs]`."""
    rows = torch.arange(outputs) // (outputs // branches)
    columns = torch.arange(inputs) // (inputs // branches)
    return (columns[None] <= rows[:, None]).float()


def _check_width(came: int, inputs: int, branches: int, groups: int) -> None:
    """A row of a weight would fit fewer inputs, too: those of smaller images, say."""
    if came * branches != inputs * groups:
        wanted = inputs * groups // branches
        raise InvalidInput(
            f"a layer of {inputs} inputs in {branches} groups reads {groups} of them here, {wanted} inputs, and got "
            f"{came}; give images of the size that the network was made for"
        )


class TriangularConv2d(nn.Conv2d):
    """A convolution of a plain network in branches; it shares that one's parameters.

    With several groups of its own (depthwise) each output reads its own group alone, which the branches do not change.
    """

    allowed: Tensor | None

    def __init__(self, conv: nn.Conv2d, branches: int, split_input: bool) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            padding_mode=conv.padding_mode,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.branches, self.split_input = branches, split_input
        self.triangular = split_input and conv.groups == 1
        pattern = None
        if self.triangular:
            pattern = _pattern(conv.out_channels, conv.in_channels, branches)[:, :, None, None]
        self.register_buffer("allowed", pattern, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """All rows at once, `[B, in, H, W]` to `[B, out, H', W']`."""
        weight = self.weight if self.allowed is None else self.weight * self.allowed
        return self._conv_forward(x, weight, self.bias)

    def row(self, k: int, x: Tensor) -> Tensor:
        """Output group k (from 0) of what it reads: groups up to k, its own group, or an input without groups."""
        part = self.out_channels // self.branches
        rows = slice(k * part, (k + 1) * part)
        read = k + 1 if self.triangular else 1 if self.split_input else self.branches  # groups
        _check_width(x.shape[1], self.in_channels, self.branches, read)
        weight = self.weight[rows, : x.shape[1]] if self.groups == 1 else self.weight[rows]
        bias = None if self.bias is None else self.bias[rows]
        groups = self.groups if self.groups == 1 else self.groups // self.branches
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        padding: Any = self.padding if self.padding_mode == "zeros" else 0
        return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, groups)

    def row_macs(self, k: int, inputs: int, places: int) -> int:
        """Multiply-adds of row k over so many output places."""
        kernel = self.kernel_size[0] * self.kernel_size[1]
        groups = self.groups if self.groups == 1 else self.groups // self.branches
        return self.out_channels // self.branches * inputs // groups * kernel * places

    def numbers(self, k: int) -> int:
        """Parameters of the first k rows."""
        kernel = self.kernel_size[0] * self.kernel_size[1]
        out = self.out_channels // self.branches
        blocks = k
        inputs = self.in_channels // self.groups
        if self.triangular:
            blocks, inputs = k * (k + 1) // 2, self.in_channels // self.branches
        return out * blocks * inputs * kernel + (0 if self.bias is None else out * k)


class TriangularLinear(nn.Linear):
    """A linear layer of a plain network in branches; it shares that one's parameters."""

    allowed: Tensor | None

    def __init__(self, linear: nn.Linear, branches: int, split_input: bool) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.branches, self.split_input = branches, split_input
        pattern = _pattern(linear.out_features, linear.in_features, branches) if split_input else None
        self.register_buffer("allowed", pattern, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """All rows at once, `[B, in]` to `[B, out]`."""
        return F.linear(x, self.weight if self.allowed is None else self.weight * self.allowed, self.bias)

    def row(self, k: int, x: Tensor) -> Tensor:
        """Output group k (from 0) of the input groups up to k."""
        part = self.out_features // self.branches
        rows = slice(k * part, (k + 1) * part)
        read = k + 1 if self.split_input else self.branches  # groups
        _check_width(x.shape[-1], self.in_features, self.branches, read)
        return F.linear(x, self.weight[rows, : x.shape[-1]], None if self.bias is None else self.bias[rows])

    def row_macs(self, k: int, inputs: int, places: int) -> int:
        """Multiply-adds of row k."""
        return self.out_features // self.branches * inputs * places

    def numbers(self, k: int) -> int:
        """Parameters of the first k rows."""
        out = self.out_features // self.branches
        bias = 0 if self.bias is None else out * k
        if self.split_input:
            return out * (k * (k + 1) // 2) * (self.in_features // self.branches) + bias
        return out * k * self.in_features + bias


class BranchHead(nn.Module):
    """The classifier of every sub-net: z_k = z_(k-1) + U_k h_k + b_k; where the classes change, z begins anew.

    Args:
        features: of all groups together.
        branches: K.
        sizes: outputs of each sub-net `[K]`; sub-nets with as many outputs as the one before share its sum.

    Raises:
        InvalidInput: sizes that are not as many as branches or fall, or features that do not fall into groups.
    """

    def __init__(self, features: int, branches: int, sizes: Sequence[int]) -> None:
        super().__init__()
        if len(sizes) != branches or list(sizes) != sorted(sizes) or min(sizes) < 2:
            raise InvalidInput(
                f"{branches} sub-nets need as many numbers of classes, at least 2 and never falling, got {list(sizes)}"
            )
        if features % branches:
            raise InvalidInput(
                f"the {features} features of the classifier do not fall into {branches} equal groups"
            )
        self.part, self.branches, self.sizes = features // branches, branches, tuple(sizes)
        self.weights = nn.ParameterDict({
            str(size): nn.Parameter(torch.empty(size, self.part * self._last(size))) for size in dict.fromkeys(sizes)
        })  # fmt: skip
        self.biases = nn.ParameterList([torch.zeros(size) for size in sizes])
        for weight in self.weights.values():
            nn.init.kaiming_normal_(weight)

    def _last(self, size: int) -> int:
        return max(k for k, own in enumerate(self.sizes) if own == size) + 1

    def inherit(self, linear: nn.Linear) -> None:
        """Takes the weights of a plain classifier over for the sub-nets with its number of classes."""
        key = str(linear.out_features)
        with torch.no_grad():
            if key in self.weights and self.weights[key].shape == linear.weight.shape:
                self.weights[key].copy_(linear.weight)
                if linear.bias is not None:
                    self.biases[self.sizes.index(linear.out_features)].copy_(linear.bias)

    def forward(self, h: Tensor) -> list[Tensor]:
        """Features `[B, features]` to the logits of all sub-nets."""
        parts = [h[:, k * self.part : (k + 1) * self.part] for k in range(self.branches)]
        found: list[Tensor] = []
        for k in range(self.branches):
            found.append(self.row(k, parts, found[-1] if found else None))
        return found

    def row(self, k: int, parts: Sequence[Tensor], before: Tensor | None) -> Tensor:
        """The logits of sub-net k (from 0), from the features of groups up to k and the logits of the one before."""
        weight = self.weights[str(self.sizes[k])]
        if before is None or self.sizes[k] != self.sizes[k - 1]:
            h = parts[0] if k == 0 else torch.cat(list(parts[: k + 1]), dim=1)
            return F.linear(h, weight[:, : self.part * (k + 1)], self.biases[k])
        return before + F.linear(parts[k], weight[:, self.part * k : self.part * (k + 1)], self.biases[k])

    def row_macs(self, k: int) -> int:
        """Multiply-adds that the logits of sub-net k (from 0) take after those of the one before."""
        anew = k == 0 or self.sizes[k] != self.sizes[k - 1]
        return self.sizes[k] * self.part * (k + 1 if anew else 1)

    def numbers(self, k: int) -> int:
        """Parameters that the prediction of sub-net k (from 1) needs, alone."""
        size = self.sizes[k - 1]
        shared = sum(own == size for own in self.sizes[:k])
        return size * self.part * k + size * shared
