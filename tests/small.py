"""A network and data small enough to train in a test."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from subnet_search.data import Batch, Splits, TensorBatches
from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.supernet import Supernet
from subnet_search.settings import ElasticSettings

NUM_CLASSES = 4
EXAMPLE = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)


class Branch(nn.Module):
    """A residual block without activation after the addition, so that it may be skipped."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(2 * channels)
        self.conv2 = nn.Conv2d(2 * channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))


class SmallNet(nn.Module):
    """`[B, 1, 8, 8]` to `[B, 4]` with a residual stream, a depthwise convolution and, if wanted, dropout."""

    def __init__(self, channels: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.block1 = Branch(channels)
        self.block2 = Branch(channels)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.head = nn.Conv2d(channels, 2 * channels, 1)
        self.drop = nn.Dropout(dropout)
        self.classifier = nn.Linear(2 * channels, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.block1(self.bn(self.stem(x)).relu()))
        x = self.head(self.depthwise(x)).relu().mean((2, 3))
        return self.classifier(self.drop(x))


def small_net(seed: int = 0, dropout: float = 0.0) -> SmallNet:
    """With random weights, and batch norms whose scales, shifts and statistics differ from channel to channel."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = SmallNet(dropout=dropout)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.uniform_(-0.5, 0.5)
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return net


def small_supernet(seed: int = 0, dropout: float = 0.0) -> Supernet:
    return make_elastic(small_net(seed, dropout), EXAMPLE, ElasticSettings(min_share=0.25, step=2))


def small_data(num_images: int, seed: int) -> Batch:
    """Four noisy patterns, `[num_images, 1, 8, 8]`, that a small net learns in a few steps."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % NUM_CLASSES
    patterns = torch.randn(NUM_CLASSES, 1, 8, 8, generator=torch.Generator().manual_seed(99))
    return patterns[labels] + 0.7 * torch.randn(num_images, 1, 8, 8, generator=generator), labels


def small_splits(num_train: int = 48, batch_size: int = 16) -> Splits:
    """Shuffled training batches, and 40 images each to validate and to test on."""
    train = small_data(num_train, seed=1)
    return Splits(
        train=TensorBatches(*train, batch_size, shuffle=True),
        search_val=TensorBatches(*small_data(40, seed=2), 16),
        test=TensorBatches(*small_data(40, seed=3), 16),
        calibration=TensorBatches(*train, batch_size),
    )
