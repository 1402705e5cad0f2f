"""A multi-branch network whose first branches are networks of their own: I-ResNeXt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces import CostTable, InvalidInput, SearchSpace
from search_spaces.presets.branches import BRANCH_KNOB, branch_space


class NestedBlock(nn.Module):
    """norm-ReLU-1x1, norm-ReLU-grouped 3x3, norm-ReLU-1x1, and a shortcut without parameters.

    Sub-net k runs the first k of K groups of inner channels, with norms of its own; convolutions are shared.
    """

    def __init__(self, inputs: int, outputs: int, branch: int, branches: int, stride: int) -> None:
        super().__init__()
        inner = branch * branches
        self.inputs, self.outputs, self.branch, self.stride = inputs, outputs, branch, stride
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=branches, bias=False)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        counts = range(1, branches + 1)
        self.norms1 = nn.ModuleList([nn.BatchNorm2d(inputs) for _ in counts])
        self.norms2 = nn.ModuleList([nn.BatchNorm2d(branch * k) for k in counts])
        self.norms3 = nn.ModuleList([nn.BatchNorm2d(branch * k) for k in counts])

    def forward(self, x: Tensor, k: int) -> Tensor:
        """`[B, inputs, H, W]` to `[B, outputs, H/s, W/s]`, with k branches."""
        width = self.branch * k
        out = F.conv2d(self.norms1[k - 1](x).relu(), self.conv1.weight[:width])
        weight = self.conv2.weight[:width]
        out = F.conv2d(self.norms2[k - 1](out).relu(), weight, None, self.stride, 1, groups=k)
        out = F.conv2d(self.norms3[k - 1](out).relu(), self.conv3.weight[:, :width])
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride)
        if self.outputs > self.inputs:
            x = F.pad(x, (0, 0, 0, 0, 0, self.outputs - self.inputs))
        return out + x


class NestedResNeXt(nn.Module):
    """ResNeXt for small images with K nested sub-nets; private norms and classifiers, shared convolutions.

    Nothing of sub-net k can be used again by k + 1, so training costs (K + 1) / 2 passes of the whole and so does an
    anytime loop. It is what `TriangularNet` is compared with.

    Args:
        blocks: of each stage; widths double and sizes halve from stage to stage.
        width: channels of the first stage's stream.
        branch: channels of one branch in the first stage.
        branches: K.
        num_classes: outputs.
        in_channels: 3 for colour, 1 for grey.
        size_px: side of the images.

    Source:
        Lee, Shin, "Anytime Neural Prediction via Slicing Networks Vertically", 2018, arXiv:1807.02609.

    Attributes:
        space: the knob "branches".
    """

    def __init__(
        self,
        blocks: Sequence[int] = (7, 7, 7),
        width: int = 64,
        branch: int = 4,
        branches: int = 8,
        num_classes: int = 10,
        in_channels: int = 3,
        size_px: int = 32,
    ) -> None:
        super().__init__()
        self.space: SearchSpace = branch_space(branches)
        self.branches, self.example = branches, torch.zeros(1, in_channels, size_px, size_px)
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        layers: list[NestedBlock] = []
        before = width
        for stage, count in enumerate(blocks):
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                after = width * 2**stage
                layers.append(NestedBlock(before, after, branch * 2**stage, branches, stride))
                before = after
        self.blocks = nn.ModuleList(layers)
        counts = range(branches)
        self.norms = nn.ModuleList([nn.BatchNorm2d(before) for _ in counts])
        self.heads = nn.ModuleList([nn.Linear(before, num_classes) for _ in counts])
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor, k: int | None = None) -> Tensor:
        """Logits `[B, num_classes]` of sub-net k; of the whole one by default.

        Raises:
            InvalidInput: k is not from 1 to K.
        """
        k = self.branches if k is None else k
        if not 1 <= k <= self.branches:
            raise InvalidInput(f"the number of branches must be from 1 to {self.branches}, got {k}")
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, k)
        return self.heads[k - 1](self.norms[k - 1](x).relu().mean((2, 3)))

    @cached_property
    def costs(self) -> CostTable:
        """The costs of sub-nets: linear in the number of branches. Peak activation: the widest block's."""
        side = self.example.shape[-1]
        stem, first = self.stem.weight.numel(), side * side
        fixed, each, peak_each, peak = stem * first, 0, 0, 0
        fixed_params, each_params = stem, 0
        blocks: Sequence[Any] = list(self.blocks)
        for block in blocks:
            own = block.conv1.weight.numel() // self.branches
            rest = (block.conv2.weight.numel() + block.conv3.weight.numel()) // self.branches
            each += own * side * side
            stream = block.inputs * side * side
            inner = block.branch * side * side
            side //= block.stride
            each += rest * side * side
            each_params += own + rest + 4 * block.branch
            fixed_params += 2 * block.inputs
            peak, peak_each = max(peak, 2 * stream), max(peak_each, 2 * inner)
        head: Any = self.heads[0]
        features, classes = head.in_features, head.out_features
        fixed += features * classes
        fixed_params += features * classes + classes + 2 * features
        knob, kept = (BRANCH_KNOB,), self.example.numel()
        return CostTable(
            knob,
            (1,),
            {(): fixed, knob: each},
            {(): fixed_params, knob: each_params},
            {(): 4 * fixed_params, knob: 4 * each_params},
            ({(): 4 * (peak + kept), knob: 4 * peak_each},),
        )
