"""Residual networks for small images: the project's own models for examples, tests and evidence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from subnet_search.elastic.branches import TriangularNet, make_triangular
from subnet_search.elastic.padding import PaddedShortcut


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a parameter-free shortcut: `[B, C, H, W]` to `[B, C', H/s, W/s]`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        same = in_channels == out_channels and stride == 1
        self.shortcut = nn.Identity() if same else PaddedShortcut(in_channels, out_channels, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output after the last ReLU."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.shortcut(x))


class SmallResNet(nn.Module):
    """The ResNet of He et al. for small images: three stages of basic blocks, option A shortcuts.

    Weights published for this architecture under the names conv1, bn1, layerS.B.convN, linear load as they are.

    Args:
        blocks: blocks of each stage; the width doubles and the size halves from stage to stage.
        width: channels of the first stage.
        num_classes: size of the output.
        in_channels: 3 for colour, 1 for grey.

    Source:
        He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", arXiv:1512.03385, section 4.2.
    """

    def __init__(
        self, blocks: Sequence[int], width: int = 16, num_classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        before = width
        for stage, count in enumerate(blocks):
            after, layers = width * 2**stage, []
            for block in range(count):
                layers.append(BasicBlock(before, after, stride=2 if stage > 0 and block == 0 else 1))
                before = after
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.stages = len(blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(before, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[B, in_channels, H, W]` to logits `[B, num_classes]`."""
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.linear(self.pool(x).flatten(1))


def resnet20(width: int = 16, num_classes: int = 10, in_channels: int = 3) -> SmallResNet:
    """ResNet-20 for small images; 41 MMACs at width 16 and 32 px."""
    return SmallResNet((3, 3, 3), width, num_classes, in_channels)


def resnet32(width: int = 16, num_classes: int = 10, in_channels: int = 3) -> SmallResNet:
    """ResNet-32 for small images."""
    return SmallResNet((5, 5, 5), width, num_classes, in_channels)


def resnet56(width: int = 16, num_classes: int = 10, in_channels: int = 3) -> SmallResNet:
    """ResNet-56 for small images."""
    return SmallResNet((9, 9, 9), width, num_classes, in_channels)


def digits_cnn(width: int = 16, num_classes: int = 10) -> SmallResNet:
    """A small residual CNN for 8x8 grey images such as scikit-learn's digits."""
    return SmallResNet((2, 2, 2), width, num_classes, in_channels=1)


def triangular_resnet(
    blocks: Sequence[int] = (3, 3, 3),
    width: int = 16,
    branches: int = 8,
    num_classes: int = 10,
    in_channels: int = 3,
    size_px: int = 32,
    sizes: Sequence[int] | None = None,
) -> TriangularNet:
    """A residual network for small images in branches, with fresh weights; see `SmallResNet` and `make_triangular`."""
    plain = SmallResNet(blocks, width, num_classes, in_channels)
    return make_triangular(plain, torch.zeros(1, in_channels, size_px, size_px), branches, sizes)
