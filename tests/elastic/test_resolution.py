"""Sub-nets that take smaller images: which networks allow it, that they are right, and what they cost."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer

from search_spaces import InvalidInput
from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.extraction import extract
from subnet_search.elastic.image_size import as_taken, resized
from subnet_search.elastic.statistics import recalibrate
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure.counter import count_macs
from subnet_search.settings import ElasticSettings
from subnet_search.small_models import resnet20
from tests.elastic.graph_toys import randomised, shuffled
from tests.elastic.judges import (
    judge_costs,
    judge_extracted,
    judge_gradients,
    judge_largest,
    judge_reordered,
)
from tests.small import EXAMPLE, SmallNet
from tests.toys import Residual, conv_bn, make_toy
from tests.vit import tiny_vit


class Odd(nn.Module):
    """Strides and windows without padding, so that every size leaves another rest; channels shuffled, if wanted."""

    def __init__(self, shuffles: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 5, stride=2, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.block, self.last = Residual(), conv_bn(16, 24, stride=2)
        self.head, self.shuffles = nn.Linear(24 * 4, 5), shuffles

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        x = self.last(self.block(shuffled(x, 2) if self.shuffles else x))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 2), 1))


def odd() -> tuple[Supernet, Tensor]:
    torch.manual_seed(0)
    x, settings = torch.randn(2, 3, 29, 29), ElasticSettings(step=4, resolution=(23, 26))
    return make_elastic(Odd().eval(), x, settings).eval(), x


def odd_graph() -> tuple[Supernet, Tensor]:
    torch.manual_seed(0)
    x, settings = torch.randn(2, 3, 29, 29), ElasticSettings(step=8, form="graph", resolution=(23,))
    return make_elastic(Odd(shuffles=True).eval(), x, settings).eval(), x


def windows() -> tuple[Supernet, Tensor]:
    """Of 12 x 12, 7 x 7 and 4 x 4 patches in windows of 4 x 4: whole, padded, and a single one that is not shifted."""
    torch.manual_seed(0)
    model = SwinTransformer([2, 2], 16, [2], [2], [4, 4], num_classes=5).eval()
    x, settings = torch.randn(2, 3, 24, 24), ElasticSettings(step=4, form="graph", resolution=(8, 14))
    return make_elastic(randomised(model), x, settings).eval(), x


def refusals(supernet: Supernet) -> list[str]:
    return [entry["reason"] for entry in supernet.coverage["fixed"] if entry["path"] == "input"]


@pytest.mark.parametrize("make", [odd, odd_graph, pytest.param(windows, marks=pytest.mark.slow)])
def test_subnets_of_every_resolution_are_right(make: object) -> None:
    supernet, x = make()  # type: ignore[operator]
    space, heights = supernet.space, supernet.space.knobs[0].choices
    assert (space.knobs[0].name, space.knobs[0].kind) == ("resolution", "resolution")
    assert supernet.coverage["resolution"] == list(heights)
    assert "resolution" in supernet.coverage["freedoms"]
    rng = np.random.default_rng(0)
    ends = (space.smallest(), space.largest(), space.sample(rng))
    configs = [space.canonical({**config, "resolution": h}) for h in heights for config in ends]
    assert {config["resolution"] for config in configs} == set(heights)
    judge_extracted(supernet, x, configs)
    if make is odd:
        judge_costs(supernet, x, configs)
        judge_gradients(supernet, x, configs[:2])
    for config in configs:
        net, row = extract(supernet, config), space.encode([config])
        assert net.input_px == (config["resolution"], config["resolution"])
        assert supernet.costs.macs(row)[0] == count_macs(net, x[:1])
        same = space.encode([{**config, "resolution": heights[-1]}])
        assert supernet.costs.params(row)[0] == supernet.costs.params(same)[0]
        if config["resolution"] < heights[-1]:
            assert supernet.costs.macs(row)[0] < supernet.costs.macs(same)[0]
            assert (
                supernet.costs.peak_activation_bytes(row)[0] < supernet.costs.peak_activation_bytes(same)[0]
            )
    judge_reordered(supernet, x)


def test_the_largest_subnet_is_the_model_and_images_of_the_active_size_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model, x = resnet20(width=8).eval(), torch.randn(2, 3, 32, 32)
    supernet = make_elastic(model, x, ElasticSettings(step=4, resolution=(24, 28))).eval()
    judge_largest(model, supernet, x)
    small = F.interpolate(x, (24, 24), mode="bilinear", antialias=True, align_corners=False)
    with supernet.subnet(supernet.space.canonical({**supernet.space.largest(), "resolution": 24})):
        assert torch.equal(supernet(x), model(small))
        assert torch.equal(supernet(small), model(small))
    assert torch.equal(supernet(x), model(x))
    twin = copy.deepcopy(supernet)
    with twin.subnet(twin.space.smallest()), supernet.subnet(supernet.space.smallest()):
        assert torch.equal(twin(x), supernet(x))


def test_the_size_of_the_example_is_the_largest_choice_and_the_width_follows() -> None:
    x = torch.randn(1, 3, 24, 32)
    supernet = make_elastic(make_toy("residual"), x, ElasticSettings(resolution=(24, 12, 18)))
    assert supernet.sizes_px == {12: (12, 16), 18: (18, 24), 24: (24, 32)}
    assert supernet.space.largest()["resolution"] == 24
    assert "resolution" not in make_elastic(make_toy("residual"), x, ElasticSettings()).space.names
    alone = make_elastic(make_toy("residual"), x, ElasticSettings(width=False, depth=False, resolution=(12,)))
    assert [dict(config) for config in (alone.space.smallest(), alone.space.largest())] == [
        {"resolution": 12},
        {"resolution": 24},
    ]


@pytest.mark.parametrize(
    ("asked", "example", "message"),
    [
        ((20,), torch.randn(1, 3, 24, 32), "images of 24 x 32 pixels would be 20 x 26.6667; take multiples of 3"),
        ((32,), torch.randn(1, 3, 24, 24), "may not be above the height of the example, 24 pixels, got 32"),
        ((8,), torch.randn(1, 16), re.escape("needs a network that takes images [B, C, H, W]")),
        ((8,), {"x": torch.randn(1, 3, 24, 24)}, "got dict; leave resolution out"),
    ],
)  # fmt: skip
def test_sizes_that_make_no_sense_are_refused(asked: tuple[int, ...], example: object, message: str) -> None:
    is_image = isinstance(example, Tensor) and example.ndim == 4
    model = make_toy("residual") if is_image or isinstance(example, dict) else nn.Linear(16, 4)
    with pytest.raises(InvalidInput, match=message):
        make_elastic(model, example, ElasticSettings(resolution=asked))  # type: ignore[arg-type]


@pytest.mark.parametrize("asked", [(0,), (-8,), (1.5,), ("8",)])
def test_resolutions_are_positive_whole_numbers(asked: object) -> None:
    with pytest.raises(InvalidInput, match="resolution"):
        ElasticSettings(resolution=asked)


class Mapped(nn.Module):
    """Answers with a map, whose size is that of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = conv_bn(3, 16), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Spread(nn.Module):
    """Spreads an image over more pixels the fewer it has, so that small ones are no cheaper."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = conv_bn(3, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(F.interpolate(x, (16, 16))).mean((2, 3)))


@pytest.mark.parametrize(
    ("make", "example", "reason"),
    [
        (lambda: make_toy("plain"), torch.randn(1, 3, 8, 8), "the network does not run on them: .*mat1 and mat2"),
        (lambda: tiny_vit().eval(), EXAMPLE, "the network does not run on them: The size of tensor"),
        (Mapped, torch.randn(1, 3, 8, 8), re.escape("the answer would be [(1, 2, 4, 4)] instead of [(1, 2, 8, 8)]")),
        (Spread, torch.randn(1, 3, 8, 8), "it would not take fewer multiply-adds"),
    ],
)  # fmt: skip
def test_a_network_that_cannot_take_smaller_images_says_why(
    make: object, example: Tensor, reason: str
) -> None:
    torch.manual_seed(0)
    supernet = make_elastic(make(), example, ElasticSettings(step=4, resolution=(4,)))  # type: ignore[operator]
    assert "resolution" not in supernet.space.names
    assert "resolution" not in supernet.coverage["freedoms"]
    assert supernet.coverage["resolution"] == []
    (told,) = refusals(supernet)
    assert re.match(f"no images of 4 x 4 pixels: {reason}", told)


def test_of_several_sizes_those_that_are_possible_are_offered() -> None:
    torch.manual_seed(0)
    supernet = make_elastic(Odd().eval(), torch.randn(1, 3, 29, 29), ElasticSettings(resolution=(3, 23)))
    assert supernet.space.knobs[0].choices == (23, 29)
    (told,) = refusals(supernet)
    assert told.startswith("no images of 3 x 3 pixels: the network does not run on them")


def test_statistics_are_those_of_the_active_size() -> None:
    torch.manual_seed(0)
    net, x = SmallNet(), torch.randn(16, 1, 8, 8)
    supernet = make_elastic(net, EXAMPLE, ElasticSettings(step=2, resolution=(6,)))
    whole = supernet.space.largest()
    found = {
        h: recalibrate(supernet, supernet.space.canonical({**whole, "resolution": h}), [x]) for h in (6, 8)
    }
    by_hand = make_elastic(net, EXAMPLE, ElasticSettings(step=2))
    alone = recalibrate(by_hand, by_hand.space.largest(), [resized(x, (6, 6))])
    assert all(torch.equal(tensor, found[6].values[name]) for name, tensor in alone.values.items())
    assert not torch.equal(found[6].values["bn.running_var"], found[8].values["bn.running_var"])
    with pytest.raises(InvalidInput, match="statistics belong to"):
        supernet.activate(whole, found[6])


def test_only_images_are_resized() -> None:
    net = nn.Identity()
    net.input_px = (4, 4)
    numbers, vectors = torch.zeros(1, 3, 8, 8, dtype=torch.int64), torch.zeros(2, 3)
    assert as_taken(net, {"a": numbers, "b": vectors, "c": 1})["a"] is numbers
    assert as_taken(net, (torch.zeros(1, 3, 8, 8), vectors))[0].shape == (1, 3, 4, 4)
    assert as_taken(nn.Identity(), numbers) is numbers
    half = as_taken(net, torch.ones(1, 3, 8, 8, dtype=torch.bfloat16))
    assert torch.equal(half, torch.ones(1, 3, 4, 4, dtype=torch.bfloat16))
