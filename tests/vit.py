"""A vision transformer small enough to train in a test: only the graph form can shrink its stream and its heads."""

from __future__ import annotations

import copy
import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.supernet import Supernet
from subnet_search.settings import ElasticSettings
from tests.small import EXAMPLE, NUM_CLASSES

SETTINGS = ElasticSettings(min_share=0.25, step=4)


class Attention(nn.Module):
    """Queries, keys and values of all heads from one layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        qkv = self.qkv(x).reshape(rows, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(rows, tokens, width))


class EncoderBlock(nn.Module):
    """Attention and an MLP, each added to the stream; training leaves them out now and then."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )
        self.depth = StochasticDepth(0.1, "row")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.depth(self.attention(self.norm1(x)))
        return x + self.depth(self.mlp(self.norm2(x)))


class TinyViT(nn.Module):
    """`[B, 1, 8, 8]` to `[B, 4]`: patches of 4 x 4, a class token, a table of positions, two blocks."""

    def __init__(self, width: int = 16, heads: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.token = nn.Parameter(0.1 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.1 * torch.randn(1, 5, width))
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads, dropout) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


def tiny_vit(seed: int = 0) -> TinyViT:
    """With random weights, also where networks start with ones and zeros."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = TinyViT()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return net


@functools.cache
def _converted(seed: int) -> Supernet:
    return make_elastic(tiny_vit(seed), EXAMPLE, SETTINGS)


def vit_supernet(seed: int = 0) -> Supernet:
    return copy.deepcopy(_converted(seed))  # conversion takes longer than what most tests do with it
