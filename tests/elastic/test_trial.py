"""What the forward does not let shrink is found by trying: all of it, nothing else, and in few runs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from subnet_search.elastic import trial
from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.supernet import Supernet
from subnet_search.settings import ElasticSettings

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
WIDTH = 16


class Picky(nn.Module):
    """Wants all channels, in a way that no graph shows."""

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, torch.fx.Proxy) and x.shape[1] != WIDTH:
            raise ValueError(f"{x.shape[1]} channels are too few")
        return x


class Chain(nn.Module):
    """Convolutions one after the other, some of which must keep their width; perhaps with a skip around one."""

    def __init__(self, length: int, picky: Sequence[int], skipped: int | None = None) -> None:
        super().__init__()
        self.skipped = skipped
        self.layers = nn.ModuleList(nn.Conv2d(WIDTH if i else 3, WIDTH, 1) for i in range(length))
        self.checks = nn.ModuleList(Picky() if i in picky else nn.Identity() for i in range(length))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer, check in zip(self.layers, self.checks, strict=True):
            x = check(layer(x)).relu()
        return self.head(x.mean((2, 3)))


class Inner(nn.Module):
    """A block that may be skipped, of which the inner width must not shrink."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.check, self.down = nn.Conv2d(WIDTH, WIDTH, 1), Picky(), nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.check(self.up(x)))


def whole(supernet: Supernet) -> list[str]:
    found = supernet.coverage["fixed"]
    return [entry["path"] for entry in found if "fails when it shrinks" in entry["reason"]]


@pytest.mark.parametrize("picky", [(), (0,), (19,), (7, 8), (0, 3, 4, 19), tuple(range(20))])
def test_exactly_the_layers_that_must_not_shrink_stay_whole(picky: tuple[int, ...]) -> None:
    net = nn.Sequential(Chain(20, picky), nn.Linear(5, 5))  # the chain's head keeps something elastic
    supernet = make_elastic(net.eval(), X, ElasticSettings(step=4, form="own classes"))
    assert whole(supernet) == [f"0.layers.{i}" for i in picky]


def test_a_width_inside_a_block_is_tried_though_the_smallest_subnet_skips_the_block() -> None:
    net = nn.Sequential(nn.Conv2d(3, WIDTH, 1), Inner(), nn.Conv2d(WIDTH, 4, 1)).eval()
    supernet = make_elastic(net, X, ElasticSettings(step=4, form="own classes"))
    assert supernet.blocks == ("1",)
    assert whole(supernet) == ["1.up"]


def test_few_runs_find_what_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []
    once = trial._failure
    monkeypatch.setattr(
        trial, "_failure", lambda supernet, config: tries.append(config) or once(supernet, config)
    )
    net = nn.Sequential(Chain(64, (40, 41)), nn.Linear(5, 5)).eval()
    make_elastic(net, X, ElasticSettings(step=4, form="own classes"))
    assert len(tries) < 32
