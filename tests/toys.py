"""Small networks with one difficulty each, shared by the tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, groups: int = 1, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Plain(nn.Module):
    """Convolutions, flatten, linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_bn(3, 16), nn.MaxPool2d(2), conv_bn(16, 24))
        self.hidden = nn.Linear(24 * 4 * 4, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.head(F.relu(self.hidden(x.view(x.size(0), -1))))


class Residual(nn.Module):
    """A residual block with an in-place addition."""

    def __init__(self, width: int = 16, hidden: int = 24) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, hidden, 3, padding=1), nn.BatchNorm2d(hidden)
        self.conv2, self.bn2 = nn.Conv2d(hidden, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        out += x
        return F.relu(out)


class ResidualNet(nn.Module):
    """A stem, two residual blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.blocks = nn.Sequential(Residual(), Residual())
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean([2, 3]))


class Nested(nn.Module):
    """A skippable block inside a skippable block."""

    def __init__(self) -> None:
        super().__init__()
        self.before = conv_bn(16, 16)
        self.inner = Residual()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(self.before(x))


class NestedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.outer, self.head = conv_bn(3, 16), Nested(), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.outer(self.stem(x)).mean((-2, -1)))


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 8, 1), nn.Conv2d(8, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Inverted(nn.Module):
    """Expansion, depthwise convolution, squeeze and excite, projection; grouped convolution after it."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depthwise = conv_bn(3, 24), conv_bn(24, 24, groups=24)
        self.gate = Gate(24)
        self.project = conv_bn(24, 16)
        self.grouped = conv_bn(16, 32, groups=4)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(self.gate(self.depthwise(self.expand(x))))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(self.grouped(x), 1), 1))


class Multiplied(nn.Module):
    """A depthwise convolution with two outputs per input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = conv_bn(3, 12), nn.Conv2d(12, 24, 3, groups=12)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.twice(self.first(x)).mean([2, 3]))


class FewGroups(nn.Module):
    """A convolution in two groups of many channels: each gets thinner."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = conv_bn(3, 32), conv_bn(32, 24, groups=2)
        self.last, self.head = conv_bn(24, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.grouped(self.stem(x))).mean((2, 3)))


class Concatenated(nn.Module):
    """Two branches side by side, one of them also read alone."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.extra = conv_bn(3, 16), conv_bn(3, 8), conv_bn(8, 16)
        self.join = conv_bn(40, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        right = self.right(x)
        joined = torch.cat([self.left(x), right, self.extra(right)], dim=1)
        return self.head(self.join(joined).mean([2, 3]))


class Reused(nn.Module):
    """One convolution called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = conv_bn(3, 16), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(torch.tanh(self.shared(self.stem(x))))
        return self.head(x.mean([2, 3]))


class TiedWeights(nn.Module):
    """Two convolutions that hold the same parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.first, self.second = nn.Conv2d(16, 16, 1, bias=False), nn.Conv2d(16, 16, 1, bias=False)
        self.second.weight = self.first.weight
        self.mid = conv_bn(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mid(self.second(self.first(self.stem(x)))).mean([2, 3]))


class LongSkip(nn.Module):
    """A tensor that is still wanted after two skippable blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = conv_bn(3, 16), Residual(), Residual()
        self.join, self.head = conv_bn(32, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.second(self.first(x))], dim=1)
        return self.head(self.join(x).mean([2, 3]))


class PreActivated(nn.Module):
    """A residual block that ends in its addition."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.relu(self.norm(x)))


class AddedInPlace(nn.Module):
    """A skippable block that adds into the memory that another one gave it."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.inner = nn.Conv2d(16, 16, 3, padding=1), PreActivated()

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(self.before(x))
        out += x
        return out


class AddedInPlaceNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = conv_bn(3, 16), nn.Sequential(AddedInPlace(), AddedInPlace())
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean([2, 3]))


class Chunked(nn.Module):
    """Views of one tensor, and a concatenation of a list that was never spelled out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side, self.last = conv_bn(3, 16), conv_bn(8, 8), conv_bn(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, dim=1)[0], self.stem(x).chunk(2, dim=1)[1]
        x = torch.cat(torch.cat([left, self.side(right)], dim=1).chunk(2, dim=1), dim=1)
        return self.head(self.last(x).mean([2, 3]))


class Listed(nn.Module):
    """Blocks that stand in two containers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv_bn(3, 16), nn.Linear(16, 5)
        self.blocks = nn.ModuleList([Residual(), Residual()])
        self.body = nn.Sequential(*self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean([2, 3]))


class Untracked(nn.Module):
    """Batch norm that always normalises with its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16, track_running_stats=False)
        self.last, self.head = conv_bn(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(F.relu(self.norm(self.stem(x)))).mean([2, 3]))


class Auxiliary(nn.Module):
    """A second head that only training calls."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = conv_bn(3, 16), conv_bn(16, 16)
        self.second, self.head = nn.Linear(16, 5), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        answer = self.head(self.last(x).mean([2, 3]))
        return answer + self.second(x.mean([2, 3])) if self.training else answer


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class PartlyOpaque(nn.Module):
    """A module whose forward depends on values, between elastic ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.moody, self.last = (
            conv_bn(3, 16),
            conv_bn(16, 16),
            Branching(),
            conv_bn(16, 16),
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.moody(self.mid(self.stem(x)))).mean([2, 3]))


class HardCoded(nn.Module):
    """A view with a size in the code, after an elastic layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = conv_bn(3, 16), conv_bn(16, 8)
        self.head = nn.Linear(8 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.stem(x)).view(-1, 512))


class Checked(nn.Module):
    """A forward that depends on a width in a way no graph shows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid = conv_bn(3, 16), conv_bn(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.stem(x))
        if not isinstance(x, torch.fx.Proxy) and x.shape[1] != 16:
            raise ValueError("this network wants 16 channels here")
        return self.head(x.mean([2, 3]))


TOYS: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "residual": ResidualNet,
    "nested": NestedNet,
    "inverted": Inverted,
    "multiplied": Multiplied,
    "few groups": FewGroups,
    "concatenated": Concatenated,
    "reused": Reused,
    "tied weights": TiedWeights,
    "long skip": LongSkip,
    "added in place": AddedInPlaceNet,
    "chunked": Chunked,
    "listed": Listed,
    "untracked": Untracked,
    "auxiliary": Auxiliary,
    "partly opaque": PartlyOpaque,
    "hard-coded": HardCoded,
    "checked": Checked,
    "perceptron": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 5)
    ),
}


def make_toy(name: str, seed: int = 0) -> nn.Module:
    """A toy with random weights and random batch-norm statistics, in evaluation mode."""
    torch.manual_seed(seed)
    model = TOYS[name]()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            if module.running_mean is not None:
                nn.init.normal_(module.running_mean, std=0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()
