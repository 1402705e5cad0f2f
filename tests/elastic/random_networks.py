"""Networks put together at random from small steps, each of which moves channels in its own way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.elastic.graph_toys import (
    Added,
    EinsumAttention,
    FusedAttention,
    Gated,
    Mlp,
    NormAct,
    NormOfMaps,
    SqueezeExcite,
    StandardConv,
    TorchAttention,
    WindowAttention,
    randomised,
    shuffled,
)

SIZE = 4  # of the maps [B, C, SIZE, SIZE] between two steps
MOST = 32  # channels; where there are more, the next step is made narrower first

Step = tuple[str, int, int]  # kind and two choices of 0 to 3, of which every kind makes its own sense
Made = tuple[nn.Module, int]  # a module from maps to maps, and how many channels it makes


class Tokens(nn.Module):
    """Runs a module for `[B, N, C]` on maps."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        rows, channels, height, width = x.shape
        x = self.inner(x.flatten(2).transpose(1, 2))
        return x.transpose(1, 2).reshape(rows, channels, height, width)


class LastAxis(nn.Module):
    """Runs a module for `[B, H, W, C]` on maps."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


class Calling(nn.Module):
    """Calls a function on the maps and what modules make of them."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *(part(x) for part in self.parts))


class Scaled(nn.Module):
    """Layer scale and a shift per position."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(1, channels, SIZE, SIZE))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Doubled(nn.Module):
    """Half of the channels pass, the other half go through a module; then all are shuffled."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        return shuffled(torch.cat((left, self.inner(right)), dim=1), 2)


class AcrossChannels(nn.Module):
    """Attention between channels instead of positions."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = (
            heads,
            nn.Linear(channels, 3 * channels),
            nn.Linear(channels, channels),
        )
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        rows, count, channels = x.shape
        q, k, v = self.qkv(x).reshape(rows, count, 3, self.heads, -1).permute(2, 0, 3, 4, 1)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        return self.proj((scores.softmax(-1) @ v).permute(0, 3, 1, 2).reshape(rows, count, channels))


class Selective(nn.Module):
    """Two branches that are weighed channel by channel by a softmax between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.paths = nn.ModuleList(nn.Conv2d(channels, channels, k, padding=k // 2) for k in (1, 3))
        self.squeeze, self.choose = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([path(x) for path in self.paths], dim=1)  # [B, 2, C, H, W]
        weights = self.choose(F.relu(self.squeeze(both.sum(1).mean((2, 3), keepdim=True))))
        rows, channels = x.shape[:2]
        return (both * weights.view(rows, 2, channels, 1, 1).softmax(dim=1)).sum(dim=1)


def _norm(channels: int, kind: int) -> nn.Module:
    groups = next(g for g in (4, 3, 2, 1) if channels % g == 0)
    return [nn.BatchNorm2d, NormAct, NormOfMaps, lambda c: nn.GroupNorm(groups, c)][kind](channels)


def _act(channels: int, kind: int) -> nn.Module:
    return (nn.ReLU(), nn.GELU(), nn.PReLU(), nn.PReLU(channels))[kind]


def _heads(channels: int, choice: int) -> int:
    return next(h for h in ((1, 2, 4, 2)[choice], 2, 1) if channels % h == 0 and channels > h)


def _conv(channels: int, a: int, b: int) -> Made:
    width = (12, 8, 16, 20)[a]
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=a > 1), _norm(width, b), nn.ReLU()
    ), width


def _grouped(channels: int, a: int, b: int) -> Made:
    groups = next(g for g in (2 + a, 2, 1) if channels % g == 0)
    width = groups * (4, 6, 8, 3)[b]
    return nn.Sequential(nn.Conv2d(channels, width, 1, groups=groups), nn.BatchNorm2d(width)), width


def _depthwise(channels: int, a: int, b: int) -> Made:
    width = channels * (1 + a % 2)
    conv = nn.Conv2d(channels, width, 3, padding=1, groups=channels, padding_mode=("zeros", "reflect")[b % 2])
    return nn.Sequential(conv, nn.Hardswish()), width


def _residual(channels: int, a: int, b: int) -> Made:
    inner = nn.Sequential(
        nn.Conv2d(channels, (8, 12, 16, 24)[a], 1), nn.SiLU(), nn.Conv2d((8, 12, 16, 24)[a], channels, 1)
    )
    return Added(_norm(channels, b), inner), channels


def _joined(channels: int, a: int, b: int) -> Made:
    width = (4, 8, 12, 16)[b]
    made = nn.Conv2d(channels, width, 1)
    return [
        (Calling(lambda x, y: torch.cat([x, y], dim=1), made), channels + width),
        (Calling(lambda x, y: torch.cat([y, x, y], dim=1), made), channels + 2 * width),
        (Calling(lambda x: torch.cat([x, -x], dim=1)), 2 * channels),
        (
            Calling(lambda x, y: F.pad(x, (0, 0, 0, 0, 0, 4)) + y, nn.Conv2d(channels, channels + 4, 1)),
            channels + 4,
        ),
    ][a]


def _shuffle(channels: int, a: int, b: int) -> Made:
    groups = next(g for g in (2 + a, 2, 1) if channels % g == 0)
    shuffle = Calling(lambda x: shuffled(x, groups))
    return (nn.Sequential(shuffle, nn.Conv2d(channels, 12, 1)), 12) if b % 2 else (shuffle, channels)


def _halves(channels: int, a: int, b: int) -> Made:
    if channels % 4:
        return _conv(channels, a, b)
    half = channels // 2
    return Doubled(nn.Sequential(nn.Conv2d(half, half, 1), _norm(half, b))), channels


def _gate(channels: int, a: int, b: int) -> Made:
    width = (8, 12, 6, 16)[b]

    def halves(x: Tensor, y: Tensor) -> Tensor:
        value, gate = y.chunk(2, dim=1) if a < 2 else y.split(width, dim=1)
        return value * gate.sigmoid()

    if a == 3:
        return LastAxis(Gated(channels, width, False)), channels
    return Calling(halves, nn.Conv2d(channels, 2 * width, 1)), width


def _squeeze(channels: int, a: int, b: int) -> Made:
    return (Selective(channels), channels) if a == 3 else (SqueezeExcite(channels), channels)


def _attention(channels: int, a: int, b: int) -> Made:
    kind = (FusedAttention, TorchAttention, EinsumAttention, AcrossChannels)[a]
    return Tokens(Added(nn.LayerNorm(channels), kind(channels, _heads(channels, b)))), channels


def _windows(channels: int, a: int, b: int) -> Made:
    attention = WindowAttention(channels, _heads(channels, b), SIZE, 2, a % 2)
    return LastAxis(Added(nn.LayerNorm(channels), attention)), channels


def _mlp(channels: int, a: int, b: int) -> Made:
    mlp = Mlp(channels, (8, 16, 24, 12)[a])
    return LastAxis(Added(nn.LayerNorm(channels), mlp) if b % 2 else mlp), channels


def _mixed(channels: int, a: int, b: int) -> Made:
    positions = SIZE * SIZE
    return Calling(lambda x, y: x + y, _Positions(Mlp(positions, (8, 12, 16, 24)[a]))), channels


class _Positions(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(2)).unflatten(2, (SIZE, SIZE))


def _standard(channels: int, a: int, b: int) -> Made:
    width = (8, 12, 16, 20)[a]
    return nn.Sequential(StandardConv(channels, width, 3, padding=1), nn.GELU()), width


def _picked(channels: int, a: int, b: int) -> Made:
    """Some of the channels, told by slices and lists; the next block gets a tensor, not a look at a larger one."""
    order = torch.randperm(channels, generator=torch.Generator().manual_seed(b))
    return [
        (Calling(lambda x: x[:, ::2] * 2), -(-channels // 2)),
        (Calling(lambda x: x[:, b + 1 :] * 2), channels - b - 1),
        (Calling(lambda x: x[:, order.tolist()]), channels),
        (Calling(lambda x: x.flip(1)), channels),
    ][a]


def _averaged(channels: int, a: int, b: int) -> Made:
    """Reductions over some of the axes, and over parts of the channels."""
    parts = 2 if channels % 2 == 0 else 1
    return [
        (Calling(lambda x: x - x.mean(dim=1, keepdim=True)), channels),
        (Calling(lambda x: x.unflatten(1, (parts, -1)).mean(1)), channels // parts),
        (Calling(lambda x: x.unflatten(1, (-1, parts)).amax(2)), channels // parts),
        (Calling(lambda x: x / (x.abs().sum((2, 3), keepdim=True) + 1)), channels),
    ][a]


class Halved(nn.Module):
    """Two norms, each for some of the channels."""

    def __init__(self, channels: int, first: int) -> None:
        super().__init__()
        self.first = first
        self.left, self.right = nn.InstanceNorm2d(first, affine=True), nn.BatchNorm2d(channels - first)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(x, [self.first, x.shape[1] - self.first], 1)
        return torch.cat((self.left(left.contiguous()), self.right(right.contiguous())), 1)


def _uneven(channels: int, a: int, b: int) -> Made:
    """Some channels are treated in another way than the rest, by no layer of their own."""
    first = min((3, channels // 2, 2, 5)[b], channels - 1)

    def shifted(x: Tensor) -> Tensor:
        x = x * 1
        x[:, :first] += 1
        x[:, 1 : first + 1].mul_(2)
        return x

    return [
        (Calling(lambda x: torch.cat([x[:, :first].tanh(), x[:, first:]], dim=1)), channels),
        (
            Calling(
                lambda x: torch.cat([F.max_pool2d(x[:, ::2], 3, 1, 1), F.avg_pool2d(x[:, 1::2], 3, 1, 1)], 1)
            ),
            channels,
        ),
        (Calling(shifted), channels),
        (Halved(channels, first), channels),
    ][a]


def _sized(channels: int, a: int, b: int) -> Made:
    """Fewer positions and back again."""
    return [
        (nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=2)), channels),
        (
            nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * channels, 16, 1), nn.Upsample(scale_factor=2)),
            16,
        ),
        (nn.Sequential(nn.Conv2d(channels, 16, 1), nn.PixelShuffle(2), nn.AvgPool2d(2)), 4),
        (nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear")), channels),
    ][a]


KINDS: dict[str, Callable[[int, int, int], Made]] = {
    "conv": _conv, "grouped": _grouped, "depthwise": _depthwise, "residual": _residual, "joined": _joined,
    "shuffle": _shuffle, "halves": _halves, "gate": _gate, "squeeze": _squeeze, "attention": _attention,
    "windows": _windows, "mlp": _mlp, "mixed": _mixed, "standard": _standard, "picked": _picked,
    "averaged": _averaged, "uneven": _uneven, "sized": _sized,
    "scaled": lambda channels, a, b: (Scaled(channels), channels),
}  # fmt: skip


class RandomNetwork(nn.Module):
    """A stem, the steps one after another, and a head of one of four kinds."""

    def __init__(self, steps: Sequence[Step], head: int) -> None:
        super().__init__()
        channels = 16
        made: list[nn.Module] = [nn.Conv2d(3, channels, 2, stride=2)]
        for kind, a, b in steps:
            if channels > MOST or channels < 4:
                made.append(nn.Conv2d(channels, 16, 1))
                channels = 16
            module, channels = KINDS[kind](channels, a, b)
            made.append(module)
        self.body, self.kind = nn.Sequential(*made), head
        self.norm = nn.LayerNorm(channels) if head % 2 else nn.Identity()
        self.head = nn.Linear(channels * (SIZE * SIZE if head == 2 else 1), 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if self.kind == 2:
            return self.head(x.reshape(x.shape[0], -1))
        return self.head(self.norm(x.flatten(2).amax(2) if self.kind == 3 else x.mean((2, 3))))


def random_network(steps: Sequence[Step], head: int = 0) -> nn.Module:
    """The network of some steps with random numbers, in evaluation mode."""
    torch.manual_seed(0)
    return randomised(RandomNetwork(steps, head))
