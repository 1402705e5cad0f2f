"""ResNet-50 and ResNet-20 with given widths and blocks, written by hand as plain modules.

They know nothing of supernets; sizes are those of the weights they are made for.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

Weights = Mapping[str, Tensor]


def _conv(weights: Weights, path: str, stride: int = 1) -> nn.Conv2d:
    out_channels, in_channels, window, _ = weights[f"{path}.weight"].shape
    return nn.Conv2d(in_channels, out_channels, window, stride, padding=window // 2, bias=False)


def _norm(weights: Weights, path: str) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(len(weights[f"{path}.weight"]))


def _linear(weights: Weights, path: str) -> nn.Linear:
    out_features, in_features = weights[f"{path}.weight"].shape
    return nn.Linear(in_features, out_features)


def _blocks(weights: Weights, stage: str) -> list[int]:
    """Numbers of the blocks that are there."""
    return sorted({int(name.split(".")[1]) for name in weights if name.startswith(f"{stage}.")})


class Bottleneck(nn.Module):
    def __init__(self, weights: Weights, path: str, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(weights, f"{path}.conv1"), _norm(weights, f"{path}.bn1")
        self.conv2, self.bn2 = _conv(weights, f"{path}.conv2", stride), _norm(weights, f"{path}.bn2")
        self.conv3, self.bn3 = _conv(weights, f"{path}.conv3"), _norm(weights, f"{path}.bn3")
        self.downsample: nn.Module | None = None
        if f"{path}.downsample.0.weight" in weights:
            self.downsample = nn.Sequential(
                _conv(weights, f"{path}.downsample.0", stride), _norm(weights, f"{path}.downsample.1")
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


def _stage(weights: Weights, path: str, stride: int) -> nn.Sequential:
    layers = nn.Sequential()
    for block in _blocks(weights, path):
        layers.add_module(str(block), Bottleneck(weights, f"{path}.{block}", stride if block == 0 else 1))
    return layers


class ResNet50(nn.Module):
    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(weights, "conv1", stride=2), _norm(weights, "bn1")
        self.layer1 = _stage(weights, "layer1", 1)
        self.layer2 = _stage(weights, "layer2", 2)
        self.layer3 = _stage(weights, "layer3", 2)
        self.layer4 = _stage(weights, "layer4", 2)
        self.fc = _linear(weights, "fc")
        self.load_state_dict(dict(weights))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 3, 2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class BasicBlock(nn.Module):
    def __init__(self, weights: Weights, path: str, stride: int, zeros_before: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(weights, f"{path}.conv1", stride), _norm(weights, f"{path}.bn1")
        self.conv2, self.bn2 = _conv(weights, f"{path}.conv2"), _norm(weights, f"{path}.bn2")
        inputs, outputs = self.conv1.in_channels, self.conv2.out_channels
        self.stride = stride
        self.before = min(zeros_before, outputs)
        self.taken = min(inputs, outputs - self.before)
        self.after = outputs - self.before - self.taken

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        if self.stride > 1:
            x = F.pad(x[:, : self.taken, ::2, ::2], (0, 0, 0, 0, self.before, self.after))
        return F.relu(out + x, inplace=True)


def _small_stage(weights: Weights, path: str, zeros_before: int) -> nn.Sequential:
    layers = nn.Sequential()
    for block in _blocks(weights, path):
        grows = zeros_before > 0 and block == 0
        layers.add_module(
            str(block),
            BasicBlock(weights, f"{path}.{block}", 2 if grows else 1, zeros_before if grows else 0),
        )
    return layers


class ResNet20(nn.Module):
    """Of width 16 at most: where channels double, half of the new ones stand before the old, half behind."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        weights = {name: tensor for name, tensor in weights.items() if not name.endswith(".sources")}
        self.conv1, self.bn1 = _conv(weights, "conv1"), _norm(weights, "bn1")
        self.layer1 = _small_stage(weights, "layer1", 0)
        self.layer2 = _small_stage(weights, "layer2", 8)
        self.layer3 = _small_stage(weights, "layer3", 16)
        self.linear = _linear(weights, "linear")
        self.load_state_dict(weights)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits
