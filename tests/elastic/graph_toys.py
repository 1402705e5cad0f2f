"""Small networks that only the graph form can shrink, with one difficulty each, and what is elastic in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.toys import FewGroups

NUM_CLASSES = 5


class Patches(nn.Module):
    """`[B, 3, 8, 8]` to tokens `[B, 16, C]`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(2).transpose(1, 2)


class Mlp(nn.Sequential):
    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width))


class Added(nn.Module):
    """A residual branch behind a norm: skippable."""

    def __init__(self, norm: nn.Module, branch: nn.Module) -> None:
        super().__init__()
        self.norm, self.branch = norm, branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(self.norm(x))


class TorchAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class FusedAttention(nn.Module):
    """As timm writes it: one linear layer for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.each = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm = nn.LayerNorm(self.each)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        qkv = self.qkv(x).reshape(rows, tokens, 3, self.heads, self.each).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(self.q_norm(q), k, v)
        return self.proj(x.transpose(1, 2).reshape(rows, tokens, width))


class EinsumAttention(nn.Module):
    """Separate queries, keys and values, multiplied by einsum; the softmax is written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.each = heads, width // heads
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        q, k, v = (
            part(x).view(rows, tokens, self.heads, self.each).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * self.each**-0.5
        x = torch.einsum("bhqk,bhkd->bqhd", scores.softmax(-1), v)
        return self.proj(x.reshape(rows, tokens, width))


class Transformer(nn.Module):
    """A class token, a table of positions, blocks of attention and MLP, a head on the class token."""

    def __init__(
        self, attention: Callable[[int, int], nn.Module], width: int = 16, heads: int = 4, depth: int = 1
    ) -> None:
        super().__init__()
        self.patches = Patches(width)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width))
        blocks = []
        for _ in range(depth):
            blocks.append(Added(nn.LayerNorm(width), attention(width, heads)))
            blocks.append(Added(nn.LayerNorm(width), Mlp(width, 24, dropout=0.1)))
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class WindowAttention(nn.Module):
    """Attention in windows of a shifted grid, with a table of relative positions and a mask."""

    def __init__(self, width: int, heads: int, size: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.each, self.window, self.shift = heads, width // heads, window, shift
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
        places = places.flatten(1)
        apart = places[:, :, None] - places[:, None, :] + window - 1  # [2, window^2, window^2]
        self.register_buffer("index", apart[0] * (2 * window - 1) + apart[1])
        region = torch.zeros(size, size)
        for i, rows in enumerate((slice(-window), slice(-window, -shift), slice(-shift, None))):
            for j, columns in enumerate((slice(-window), slice(-window, -shift), slice(-shift, None))):
                region[rows, columns] = 3 * i + j
        regions = self.windows(region[None, :, :, None])[..., 0]
        apart = regions[:, None, :] != regions[:, :, None]
        self.register_buffer("mask", torch.where(apart, -100.0, 0.0) if shift else None, persistent=False)

    def windows(self, x: Tensor) -> Tensor:
        rows, height, width, channels = x.shape
        x = x.view(rows, height // self.window, self.window, width // self.window, self.window, channels)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, self.window**2, channels)

    def forward(self, x: Tensor) -> Tensor:
        rows, height, width, channels = x.shape
        shifted = torch.roll(x, (-self.shift, -self.shift), (1, 2)) if self.shift else x
        cells = self.windows(shifted)  # [B * windows, window^2, C]
        each = cells.shape[1]
        qkv = self.qkv(cells).reshape(-1, each, 3, self.heads, self.each).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * self.each**-0.5, qkv[1], qkv[2]
        scores = q @ k.transpose(-2, -1)
        bias = self.table[self.index.view(-1)].view(each, each, -1).permute(2, 0, 1).contiguous()
        scores = scores + bias.unsqueeze(0)
        if self.mask is not None:
            count = self.mask.shape[0]
            scores = scores.view(rows, count, self.heads, each, each) + self.mask.unsqueeze(1).unsqueeze(0)
            scores = scores.view(-1, self.heads, each, each)
        cells = self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, each, channels))
        x = cells.view(rows, height // self.window, width // self.window, self.window, self.window, channels)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(rows, height, width, channels)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x


class Merging(nn.Module):
    """Four neighbours side by side, then fewer channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1)))


class Windows(nn.Module):
    """Two stages of window attention, the second after patch merging."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 2, stride=2)
        self.stages = nn.Sequential(
            Added(nn.LayerNorm(16), WindowAttention(16, 4, 4, 2, 1)),
            Merging(16),
            Added(nn.LayerNorm(32), WindowAttention(32, 8, 2, 2, 0)),
            Added(nn.LayerNorm(32), Mlp(32, 24)),
        )
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.patches(x).permute(0, 2, 3, 1))
        return self.head(self.norm(x).mean((1, 2)))


class NormOfMaps(nn.LayerNorm):
    """Layer norm over the channels of `[B, C, H, W]`."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class ConvNextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.LayerNorm(width)
        self.mlp, self.scale = Mlp(width, 24), nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.mlp(self.norm(self.conv(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return x + self.scale * inner


class ConvNext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 2, stride=2), NormOfMaps(16))
        self.blocks = nn.Sequential(ConvNextBlock(16), ConvNextBlock(16))
        self.down = nn.Sequential(NormOfMaps(16), nn.Conv2d(16, 24, 2, stride=2))
        self.last, self.head = ConvNextBlock(24), nn.Linear(24, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.down(self.blocks(self.stem(x)))).mean((2, 3)))


def conv_bn(inputs: int, outputs: int, kernel: int = 3, groups: int = 1, act: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *[nn.ReLU(inplace=True)] * act)


class ShuffleUnit(nn.Module):
    """Half of the channels pass, half are worked on, then they are shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            conv_bn(half, half, 1), conv_bn(half, half, 3, half, act=False), conv_bn(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        return shuffled(torch.cat([left, self.branch(right)], dim=1), 2)


def shuffled(x: Tensor, groups: int) -> Tensor:
    rows, channels, height, width = x.shape
    x = x.view(rows, groups, channels // groups, height, width).transpose(1, 2).contiguous()
    return x.view(rows, channels, height, width)


class Shuffles(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 32)
        self.units = nn.Sequential(ShuffleUnit(32), ShuffleUnit(32))
        self.last, self.head = conv_bn(32, 24, 1), nn.Linear(24, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.units(self.stem(x))).mean((2, 3)))


class GroupShuffle(nn.Module):
    """A shuffle before a grouped convolution: a group reads what lies apart before the shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = conv_bn(3, 32), conv_bn(32, 16, 1, groups=4)
        self.last, self.head = conv_bn(16, 12, 1), nn.Linear(12, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.grouped(shuffled(self.stem(x), 2))).mean((2, 3)))


class Gated(nn.Module):
    """A gated linear unit: half of the hidden channels gate the other half."""

    def __init__(self, width: int, hidden: int, split: bool) -> None:
        super().__init__()
        self.up, self.down, self.split = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width), split

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if self.split:
            value, gate = x.chunk(2, dim=-1)
            return self.down(value * F.silu(gate))
        return self.down(F.glu(x))


class GatedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = Patches(16)
        self.blocks = nn.Sequential(
            Added(nn.LayerNorm(16), Gated(16, 24, True)), Added(nn.LayerNorm(16), Gated(16, 12, False))
        )
        self.head = nn.Linear(16, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x)).mean(1))


class StandardConv(nn.Conv2d):
    """Weights are normalised over the inputs of each output, as timm's StdConv2d does."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0, eps=1e-5
        ).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Standardised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = StandardConv(3, 16, 3), StandardConv(16, 24, 3, padding=1)
        self.head = nn.Linear(24, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(x)))).mean((2, 3)))


class GroupNorms(nn.Module):
    """Group norms of four groups and of one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16)
        self.block = Added(nn.GroupNorm(1, 16), nn.Conv2d(16, 16, 1))
        self.last, self.head = nn.Conv2d(16, 12, 1), nn.Linear(12, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(F.relu(self.block(F.relu(self.norm(self.stem(x)))))).mean((2, 3)))


class SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, 8), nn.Linear(8, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, channels = x.shape[:2]
        gate = self.up(F.relu(self.down(x.mean((2, 3))))).sigmoid()
        return x * gate.view(rows, channels, 1, 1)


class Squeezed(nn.Module):
    """Convolution with a gate whose shape is computed from its input."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(3, 16), SqueezeExcite(16), conv_bn(16, 24, groups=4), SqueezeExcite(24)
        )
        self.head = nn.Linear(24, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.body(x), 1).view(-1, 24))


class Dense(nn.Module):
    """Every layer reads what all layers before made."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(16 + 8 * i), nn.ReLU(), nn.Conv2d(16 + 8 * i, 8, 3, padding=1))
            for i in range(2)
        )
        self.norm, self.head = nn.BatchNorm2d(32), nn.Linear(32, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        x = F.relu(self.norm(torch.cat(features, 1)))
        return self.head(x.mean((2, 3)).reshape(-1, 32))


class Mixer(nn.Module):
    """MLPs over tokens and over channels in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = Patches(16)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(3))
        self.tokens, self.channels = Mlp(16, 24), Mlp(16, 32)
        self.head = nn.Linear(16, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norms[1](x))
        return self.head(self.norms[2](x).mean(1))


class Mirrored(nn.Module):
    """Convolutions that pad with what is at the other edge, with copies of the edge, and unevenly."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1, padding_mode="circular")
        self.second = nn.Conv2d(16, 24, 3, padding=1, padding_mode="reflect")
        self.third = nn.Conv2d(24, 16, 3, padding=1, padding_mode="replicate")
        self.uneven, self.head = nn.Conv2d(16, 12, 2, padding="same"), nn.Linear(12, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.third(F.relu(self.second(F.relu(self.first(x)))))
        return self.head(self.uneven(F.pad(F.relu(x), (0, 1, 0, 1))).mean((2, 3)))


class NormAct(nn.BatchNorm2d):
    """A batch norm with a forward of its own, as timm's BatchNormAct2d."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or self.running_mean is None,
            self.momentum or 0.0,
            self.eps,
        )
        return self.act(x)


class NormActs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, bias=False), NormAct(16)
        self.block = Added(NormAct(16), nn.Conv2d(16, 16, 3, padding=1))
        self.last, self.drop, self.head = conv_bn(16, 24), nn.Dropout(0.5), nn.Linear(24, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.last(self.block(self.norm(self.stem(x)))).mean((2, 3))))


class Answers(nn.Module):
    """Several answers in a dict, one of them a list."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.attention = Patches(16), Added(nn.LayerNorm(16), FusedAttention(16, 2))
        self.mlp = Added(nn.LayerNorm(16), Mlp(16, 24))
        self.head, self.second = nn.Linear(16, NUM_CLASSES), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        early = self.attention(self.patches(x))
        late = self.mlp(early)
        parts = [self.second(early.mean(1)), self.second(late.mean(1))]
        return {
            "classes": self.head(late.mean(1)),
            "parts": parts,
            "both": (parts[0] + parts[1], early.mean()),
        }


class TwoInputs(nn.Module):
    """An image asks a sequence; the sequence may be named, a number has its default."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.words = Patches(16), nn.Linear(6, 16)
        self.cross = nn.MultiheadAttention(16, 4, batch_first=True)
        self.mlp, self.head = Added(nn.LayerNorm(16), Mlp(16, 24)), nn.Linear(16, NUM_CLASSES)

    def forward(self, image: Tensor, words: Tensor, scale: float = 2.0) -> Tensor:
        asked, words = self.patches(image), self.words(words) * scale
        x = asked + self.cross(asked, words, words, need_weights=False)[0]
        return self.head(self.mlp(x).mean(1))


@dataclass(frozen=True)
class Toy:
    """A maker with what a reader of the network sees is elastic.

    Attributes:
        make: the network.
        groups: units of every width group, ascending, counted by hand.
        blocks: how many blocks can be skipped.
    """

    make: Callable[[], nn.Module]
    groups: tuple[int, ...]
    blocks: int = 0


# a stream of 16 is one group; attention has a group of heads; an MLP one of its hidden channels
GRAPH_TOYS: dict[str, Toy] = {
    "torch attention": Toy(lambda: Transformer(TorchAttention), (4, 16, 24), 2),
    "fused attention": Toy(lambda: Transformer(FusedAttention), (4, 16, 24), 2),
    "einsum attention": Toy(lambda: Transformer(EinsumAttention), (4, 16, 24), 2),
    "windows": Toy(Windows, (4, 8, 16, 24, 32), 3),
    "convnext": Toy(ConvNext, (16, 24, 24, 24, 24), 3),
    "shuffles": Toy(Shuffles, (8, 8, 8, 8, 16, 16, 16, 16, 24)),
    "group shuffle": Toy(GroupShuffle, (4, 12)),
    "few groups": Toy(FewGroups, (12, 16, 20)),
    "gated": Toy(GatedNet, (12, 16, 24), 2),
    "standardised": Toy(Standardised, (16, 24)),
    "group norms": Toy(GroupNorms, (4, 12), 1),
    "squeezed": Toy(Squeezed, (4, 8, 8)),
    "dense": Toy(Dense, (8, 8, 16)),
    "mixer": Toy(Mixer, (16, 24, 32)),
    "mirrored": Toy(Mirrored, (12, 16, 16, 24)),
    "norm and act": Toy(NormActs, (16, 24), 1),
    "answers": Toy(Answers, (2, 16, 24), 2),
    "two inputs": Toy(TwoInputs, (4, 16, 24), 1),
    "named inputs": Toy(TwoInputs, (4, 16, 24), 1),
}


def make_graph_toy(name: str, seed: int = 0) -> nn.Module:
    """A toy in evaluation mode of which every number is random, also those that networks start with alike."""
    torch.manual_seed(seed)
    return randomised(GRAPH_TOYS[name].make())


def randomised(model: nn.Module) -> nn.Module:
    """The model with random noise on all parameters and random batch-norm statistics, in evaluation mode."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.normal_(module.running_mean, std=0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def example_of(name: str, rows: int = 2, seed: int = 0) -> Any:
    """Inputs of a toy, so many rows."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(rows, 3, 8, 8, generator=generator)
    words = torch.randn(rows, 3, 6, generator=generator)
    return {"two inputs": (image, words), "named inputs": {"words": words, "image": image}}.get(name, image)
