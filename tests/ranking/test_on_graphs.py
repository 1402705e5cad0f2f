"""Rankings of supernets that run a graph: heads, MLPs, streams and blocks of transformers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from search_spaces import SubnetConfig
from subnet_search.data import Batch
from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.operations.graph_form import RunsGraph
from subnet_search.elastic.supernet import Supernet
from subnet_search.ranking import (
    RANKERS,
    Ranker,
    has_scales,
    l1_ranking,
    noise_ranking,
    rank,
    rank_by,
    taylor_ranking,
    weight_noise_ranking,
)
from subnet_search.ranking.ends import ends
from subnet_search.ranking.gates import Gates
from subnet_search.ranking.scores import filters
from subnet_search.settings import ElasticSettings, RankSettings
from tests.small import EXAMPLE, small_data, small_net

NUM_CLASSES = 4
FEW: dict[str, Ranker] = {
    "noise": partial(noise_ranking, steps=2),
    "weight_noise": partial(weight_noise_ranking, steps=2, lr=1e-3),
}


class Attention(nn.Module):
    """nn.MultiheadAttention around which there is nothing but a sum."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x, x, x, need_weights=False)[0]


class Fused(nn.Module):
    """The same with linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [3, B, heads, N, D]
        return x + self.proj(F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.gelu(self.wide(x)))


class Plain(nn.Module):
    """A transformer without norms: leaving a channel of the stream out is as exact as leaving out a head."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.positions = nn.Parameter(torch.randn(1, 16, width))
        self.attention, self.mlp = Attention(width, 4), Mlp(width)
        self.head = nn.Linear(width, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.mlp(self.attention(x)).mean(1))


class Standardised(nn.Module):
    """Convolutions whose weights are standardised, one of them depthwise, and a bilinear form of two streams."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, width, 4, stride=4), nn.Conv2d(width, width, 3, padding=1)
        self.each = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.left, self.right = nn.Linear(width, 8), nn.Linear(width, 8)
        self.head = nn.Linear(16, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for conv in (self.deep, self.each):
            weight = conv.weight - conv.weight.mean((2, 3), keepdim=True)
            x = F.conv2d(x, weight, conv.bias, padding=1, groups=conv.groups).relu()
        x = x.flatten(2).transpose(1, 2)  # [B, 16, C]
        return self.head((self.left(x) @ self.right(x).transpose(1, 2)).mean(1))


NETS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: VisionTransformer(16, 4, 2, 4, 32, 48, num_classes=NUM_CLASSES),
    "swin": lambda: SwinTransformer([2, 2], 16, [1, 1], [2, 4], [4, 4], 2.0, num_classes=NUM_CLASSES),
    "convnext": lambda: ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 2)], num_classes=4),
    "plain": Plain,
    "standardised": Standardised,
}
SIZES = {"swin": 32}


@cache
def converted(name: str) -> Supernet:
    """With weights that let all of it matter; for tests that change nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = NETS[name]()
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.3)
        size = SIZES.get(name, 16)
        example = torch.randn(1, 3, size, size)
    return make_elastic(net, example, ElasticSettings(form="graph", step=4)).eval()


def supernet_of(name: str) -> Supernet:
    return copy.deepcopy(converted(name))


def batch_of(name: str, images: int = 6, seed: int = 1) -> Batch:
    size = SIZES.get(name, 16)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, 3, size, size, generator=generator), torch.arange(images) % NUM_CLASSES


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("ranker", RANKERS)
def test_every_ranker_orders_every_group(net: str, ranker: str) -> None:
    supernet = converted(net)
    if ranker == "bn_scale" and not has_scales(supernet):
        return  # refused; see test_magnitude
    before = copy.deepcopy(supernet.state_dict())
    ranking = rank(supernet, [batch_of(net)], {**RANKERS, **FEW}[ranker])
    assert set(ranking) == set(supernet.groups)
    assert isinstance(supernet.model, RunsGraph)
    assert not supernet.model.taps
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in supernet.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("ranker", RANKERS)
def test_both_forms_of_one_net_are_ranked_alike(ranker: str) -> None:
    layers, graph = (
        make_elastic(small_net(), EXAMPLE, ElasticSettings(step=2, form=form)).eval()
        for form in ("own classes", "graph")
    )
    assert isinstance(graph.model, RunsGraph)
    assert layers.blocks == graph.blocks
    found, expected = (rank(net, [small_data(8, 1)], {**RANKERS, **FEW}[ranker]) for net in (graph, layers))
    assert {name: order.tolist() for name, order in found.items()} == {
        name: order.tolist() for name, order in expected.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS)
def test_every_group_has_weights_that_make_it_and_a_place_where_it_ends(net: str) -> None:
    supernet = converted(net)
    for name, group in supernet.groups.items():
        assert filters(supernet, group)
        assert any(name in ended for ended in ends(supernet).values())


def gated(supernet: Supernet, shift: Tensor, x: Tensor) -> Tensor:
    gates = Gates(supernet)
    with gates.open(), torch.no_grad():
        gates.shift = shift.expand(len(x), -1)
        return supernet(x)


def exact_groups(supernet: Supernet, net: str) -> set[str]:
    """Those of which no norm takes a mean over channels: in Plain and Standardised all, elsewhere heads and MLPs."""
    norms = {path for path, m in supernet.model.named_modules() if isinstance(m, nn.LayerNorm | nn.GroupNorm)}
    return {name for name, group in supernet.groups.items() if not norms & set(group.readers)}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("net", NETS)
def test_a_shift_of_minus_one_takes_exactly_the_head_unit_or_block_away(net: str, seed: int) -> None:
    supernet = supernet_of(net).double()
    exact, (x, _) = exact_groups(supernet, net), batch_of(net, 3, seed)
    assert len(exact) > 1
    rng = np.random.default_rng(seed)
    drawn = {knob.name: int(rng.choice(knob.choices)) for knob in supernet.space.knobs}
    whole = {supernet.knob_of[name]: supernet.groups[name].size for name in supernet.groups.keys() - exact}
    blocks = dict.fromkeys(supernet.blocks, 1) if seed % 2 else {}
    config = supernet.space.canonical(SubnetConfig({**drawn, **whole, **blocks}))
    kept = supernet.units_of(config)
    shift = [-(torch.arange(group.units) >= kept[name]).double() for name, group in supernet.groups.items()]
    shift.append(-torch.tensor([float(config[block] == 0) for block in supernet.blocks]).double())
    with supernet.subnet(config), torch.no_grad():
        expected = supernet(x.double())
    assert torch.cat(shift).sum() < 0
    torch.testing.assert_close(gated(supernet, torch.cat(shift), x.double()), expected)


@pytest.mark.parametrize("net", NETS)
def test_every_image_has_its_own_shift_wherever_the_batch_goes(net: str) -> None:
    supernet, (x, _) = supernet_of(net).double(), batch_of(net, 4)
    shift = 0.5 * torch.randn(4, Gates(supernet).count, generator=torch.Generator().manual_seed(0)).double()
    alone = [gated(supernet, shift[i : i + 1], x[i : i + 1].double()) for i in range(4)]
    torch.testing.assert_close(gated(supernet, shift, x.double()), torch.cat(alone))


def last_of(supernet: Supernet, net: str, ranker: Ranker, group: str) -> int:
    return int(rank(supernet, [batch_of(net)], ranker)[group][-1])


GATED = [taylor_ranking, partial(noise_ranking, steps=25)]
WEIGHED = [l1_ranking]


@pytest.mark.parametrize("ranker", GATED)
def test_a_head_that_nothing_reads_is_ranked_last(ranker: Ranker) -> None:
    supernet = supernet_of("vit")
    block = supernet.model.encoder.layers.encoder_layer_1.self_attention
    block.out_proj.weight.data[:, 8:16] = 0  # of head 1
    assert last_of(supernet, "vit", ranker, "encoder.layers.encoder_layer_1.self_attention") == 1


@pytest.mark.parametrize("ranker", WEIGHED)
def test_a_head_without_weights_of_its_own_is_ranked_last(ranker: Ranker) -> None:
    supernet = supernet_of("vit")
    block = supernet.model.encoder.layers.encoder_layer_1.self_attention
    for part in range(3):  # queries, keys and values
        block.in_proj_weight.data[32 * part + 8 : 32 * part + 16] = 0
    assert last_of(supernet, "vit", ranker, "encoder.layers.encoder_layer_1.self_attention") == 1


@pytest.mark.parametrize("ranker", GATED)
@pytest.mark.parametrize(
    ("net", "group", "reader"),
    [
        ("vit", "encoder.layers.encoder_layer_0.mlp.0", "encoder.layers.encoder_layer_0.mlp.3"),
        ("swin", "features.1.0.mlp.0", "features.1.0.mlp.3"),
        ("convnext", "features.3.1.block.3", "features.3.1.block.5"),
        ("standardised", "stem", "deep"),
    ],
)
def test_a_unit_that_nothing_reads_is_ranked_last(ranker: Ranker, net: str, group: str, reader: str) -> None:
    supernet = supernet_of(net)
    supernet.model.get_submodule(reader).weight.data[:, 3] = 0
    assert last_of(supernet, net, ranker, group) == 3


@pytest.mark.parametrize("ranker", [*GATED, *WEIGHED])
def test_a_channel_of_the_stream_that_is_zero_everywhere_is_ranked_last(ranker: Ranker) -> None:
    supernet = supernet_of("plain")
    for name, parameter in supernet.model.named_parameters():
        if name.rpartition(".")[0] in ("patches", "attention.inner.out_proj", "mlp.narrow"):
            parameter.data[5] = 0
        elif name == "positions":
            parameter.data[..., 5] = 0
    assert last_of(supernet, "plain", ranker, "patches") == 5


def test_l1_of_heads_is_that_of_the_rows_of_queries_keys_and_values() -> None:
    supernet = converted("vit")
    name = "encoder.layers.encoder_layer_0.self_attention"
    weight = supernet.model.get_submodule(name).in_proj_weight.detach().abs()
    norms = weight.reshape(3, 4, 8, 32).sum((0, 2, 3))
    assert rank(supernet, [], l1_ranking)[name].tolist() == norms.argsort(descending=True).tolist()


@pytest.mark.parametrize("net", ["plain", "standardised"])
def test_taylor_is_the_squared_derivative_of_a_gate(net: str) -> None:
    """By finite differences; what gates do is held in place above."""
    supernet, (x, labels) = supernet_of(net).double(), batch_of(net)
    gates = Gates(supernet)
    slopes = torch.zeros(gates.count).double()
    for unit in range(gates.count):
        shift = torch.zeros(gates.count).double()
        losses = []
        for step in (1e-4, -1e-4):
            shift[unit] = step
            losses.append(F.cross_entropy(gated(supernet, shift, x.double()), labels))
        slopes[unit] = (losses[0] - losses[1]) / 2e-4
    ranking = taylor_ranking(supernet, [(x.double(), labels)])
    for name, scores in gates.by_name(slopes.square())[0].items():
        assert ranking[name].tolist() == scores.argsort(descending=True).tolist()


@pytest.mark.parametrize("ranker", [l1_ranking, taylor_ranking, *FEW.values()])
def test_weights_of_no_layer_are_ranked_as_those_of_a_layer(ranker: Ranker) -> None:
    bare, plain = converted("plain"), Plain()
    plain.attention = Fused(16, 4)
    names = {"attention.inner.in_proj_": "attention.qkv.", "attention.inner.out_proj.": "attention.proj."}
    state = bare.model.state_dict()
    for old, new in names.items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    plain.load_state_dict(state)
    layers = make_elastic(plain, bare.example, ElasticSettings(form="graph", step=4)).eval()
    found, expected = (rank(net, [batch_of("plain")], ranker) for net in (bare, layers))
    assert [order.tolist() for order in found.values()] == [order.tolist() for order in expected.values()]


def test_slice_curves_of_a_net_without_batch_norm() -> None:
    supernet, batches = supernet_of("vit"), [batch_of("vit", 16, seed) for seed in (1, 2)]
    found = rank_by(RankSettings(steps=3), supernet, batches, [batch_of("vit", 32, 3)])
    assert found.curves is not None
    assert set(found.curves.top1_percent) == {"noise", "l1", "taylor", "random"}
    assert len({len(top1) for top1 in found.curves.top1_percent.values()}) == 1
    assert set(found.ranking) == set(supernet.groups)
