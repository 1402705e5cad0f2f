"""Which kind of freedom each width group is, in both forms."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.supernet import Supernet
from subnet_search.settings import ElasticSettings
from tests.elastic.graph_toys import FusedAttention, Mlp, Patches, example_of, make_graph_toy
from tests.toys import conv_bn, make_toy

X = torch.zeros(1, 3, 8, 8)
INNER, STREAM, HEADS, MLP = "inner width", "stream width", "heads", "MLP width"


def kinds(supernet: Supernet) -> dict[str, str]:
    return {group["knob"]: group["freedom"] for group in supernet.coverage["groups"]}


def counts(supernet: Supernet) -> dict[str, int]:
    return dict(Counter(kinds(supernet).values()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torch attention", {STREAM: 1, HEADS: 1, MLP: 1}),
        ("windows", {STREAM: 2, HEADS: 2, MLP: 1}),
        ("convnext", {STREAM: 2, MLP: 3}),
        ("gated", {STREAM: 1, MLP: 2}),
        ("mixer", {STREAM: 1, MLP: 2}),
        ("standardised", {INNER: 2}),
        ("squeezed", {INNER: 3}),  # a gate of linear layers is no MLP, and what it multiplies no stream
        ("dense", {INNER: 3}),
    ],
)
def test_the_kinds_of_groups_in_the_graph_form(name: str, expected: dict[str, int]) -> None:
    settings = ElasticSettings(step=4, form="graph")
    assert counts(make_elastic(make_graph_toy(name), example_of(name), settings)) == expected


@pytest.mark.parametrize("form", ["own classes", "graph"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain", {INNER: 3}),
        ("residual", {STREAM: 1, INNER: 2}),
        ("inverted", {INNER: 3}),  # a depthwise convolution and a gate write into what is still inner width
        ("concatenated", {INNER: 4}),
        ("reused", {STREAM: 1}),  # stem and the convolution after it write the same channels
        ("perceptron", {INNER: 2}),  # linear layers in a row are no MLP of a block
    ],
)
def test_both_forms_see_the_same_kinds(name: str, expected: dict[str, int], form: str) -> None:
    assert counts(make_elastic(make_toy(name), X, ElasticSettings(step=4, form=form))) == expected


class Gelu(nn.Module):
    """An activation that adds a function of its input to its input."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * x * x * x)))


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act, self.last, self.head = conv_bn(3, 16), Gelu(), conv_bn(16, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.act(self.stem(x))).mean((2, 3)))


@pytest.mark.parametrize("form", ["own classes", "graph"])
def test_an_activation_that_adds_makes_no_stream(form: str) -> None:
    assert counts(make_elastic(Custom().eval(), X, ElasticSettings(step=4, form=form))) == {INNER: 2}


class Parallel(nn.Module):
    """Attention and MLP side by side, both added to what comes in; norms come last."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.attention, self.mlp = Patches(16), FusedAttention(16, 4), Mlp(16, 24)
        self.norms = nn.ModuleList([nn.LayerNorm(16), nn.LayerNorm(16)])
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        x = x + self.norms[0](self.attention(x)) + self.norms[1](self.mlp(x))
        return self.head(x.mean(1))


def test_a_parallel_mlp_is_one() -> None:
    supernet = make_elastic(Parallel().eval(), X, ElasticSettings(step=4))
    assert kinds(supernet) == {"patches.conv": STREAM, "attention.qkv": HEADS, "mlp.0": MLP}


def test_depth_is_among_the_freedoms_where_blocks_can_be_skipped() -> None:
    residual = make_elastic(make_toy("residual"), X, ElasticSettings(step=4))
    assert residual.coverage["freedoms"] == ["depth", INNER, STREAM]
    widths = make_elastic(make_toy("residual"), X, ElasticSettings(step=4, depth=False))
    assert widths.coverage["freedoms"] == [INNER, STREAM]
    depths = make_elastic(make_toy("residual"), X, ElasticSettings(width=False))
    assert depths.coverage["freedoms"] == ["depth"]


def test_torchvision_networks_have_the_freedoms_that_their_papers_name() -> None:
    vit = torchvision.models.VisionTransformer(16, 8, 1, 2, 32, 48, num_classes=5)
    supernet = make_elastic(vit.eval(), torch.zeros(1, 3, 16, 16))
    assert supernet.coverage["freedoms"] == [MLP, "depth", HEADS, STREAM]
    resnet = make_elastic(torchvision.models.resnet18(), torch.zeros(1, 3, 32, 32))
    assert resnet.coverage["freedoms"] == ["depth", INNER, STREAM]


class Stochastic(nn.Module):
    """Two residual blocks that training leaves out now and then, with dropout after them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.attention = (
            Patches(16),
            nn.MultiheadAttention(16, 2, dropout=0.1, batch_first=True),
        )
        self.mlp, self.deep, self.never = (
            Mlp(16, 24),
            StochasticDepth(0.5, "row"),
            StochasticDepth(0.0, "row"),
        )
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        x = x + self.never(self.attention(x, x, x, need_weights=False)[0])
        return self.head(F.relu(self.drop(x + self.deep(self.mlp(x)))).mean(1))


def test_coverage_tells_what_runs_and_what_training_goes_without() -> None:
    supernet = make_elastic(Stochastic().eval(), X)
    assert supernet.coverage["form"] == "graph"
    assert supernet.coverage["training"] == (
        "training runs the graph of evaluation: dropout stays, but without the dropout inside of MultiheadAttention "
        "(1x), StochasticDepth (1x)"
    )
    supernet = make_elastic(make_graph_toy("fused attention"), X)
    assert supernet.coverage["training"] == "training runs the graph of evaluation, dropout included"
    supernet = make_elastic(make_toy("residual"), X)
    assert (supernet.coverage["form"], supernet.coverage["training"]) == (
        "own classes",
        "training runs the model's own forward",
    )


def test_dropout_is_at_work_when_the_graph_trains_and_the_rest_is_not() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    supernet = make_elastic(Stochastic().eval(), X).train()
    assert not torch.equal(supernet(x), supernet(x))
    for module in supernet.modules():
        module.training = module is not supernet.model
    assert torch.equal(supernet(x), supernet(x))
