from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces import InvalidInput
from subnet_search import make_elastic
from subnet_search.dynamic.layer_channel import LayerChannelNet
from subnet_search.dynamic.layer_channel_training import (
    CostModel,
    layer_channel_loss,
    look,
    macs_model,
    reachable_costs,
    threshold_for,
    train_layer_channel,
    usage_bounds,
)
from subnet_search.dynamic.scored_blocks import Scores, inner_groups, kept_or_not
from subnet_search.dynamic.storing_layers import load_layer_channel, store_layer_channel
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure import count_macs
from subnet_search.record import create_run, open_run
from subnet_search.settings import DynamicSettings, ElasticSettings, ModelSettings
from subnet_search.small_models import SmallResNet, resnet20
from tests.dynamic.made import IMAGES, LABELS, gate_splits
from tests.small import EXAMPLE, small_net, small_supernet
from tests.toys import make_toy
from tests.vit import tiny_vit, vit_supernet

GRAPH = ElasticSettings(form="graph", step=2, min_share=0.25)
SETTINGS = DynamicSettings(method="lc", epochs=2, device="cpu", checkpoint_seconds=1e-9)


def scattered(net: LayerChannelNet) -> LayerChannelNet:
    """With scores that differ from input to input."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in net.modules():
            if isinstance(module, Scores):
                nn.init.normal_(module.squeeze.weight)
                nn.init.normal_(module.score.weight, std=3.0)
                nn.init.zeros_(module.score.bias)
    return net.eval()


def own_classes(model: nn.Module, example: Tensor, step: int = 2) -> Supernet:
    settings = ElasticSettings(form="own classes", step=step, min_share=0.25)
    return make_elastic(model.eval(), example, settings).eval()


MADE: dict[str, Callable[[], tuple[LayerChannelNet, Tensor]]] = {
    "depthwise": lambda: (LayerChannelNet(small_supernet().eval()), IMAGES),
    "toy": lambda: (
        LayerChannelNet(own_classes(make_toy("residual"), torch.zeros(1, 3, 8, 8))),
        IMAGES.repeat(1, 3, 1, 1),
    ),
    "transformer": lambda: (LayerChannelNet(own_classes(tiny_vit(), EXAMPLE)), IMAGES),
    "graph": lambda: (LayerChannelNet(vit_supernet().eval()), IMAGES),
    "convolutions as a graph": lambda: (
        LayerChannelNet(make_elastic(small_net().eval(), EXAMPLE, GRAPH).eval()),
        IMAGES,
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        "depthwise",
        "graph",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("toy", "transformer", "convolutions as a graph")),
    ],
)
def test_what_runs_alone_answers_as_masks_do_and_costs_what_is_counted(name: str) -> None:
    net, images = MADE[name]()
    scattered(net)
    with torch.inference_mode():
        net.decide(images, sliced=False)
        assert net.decisions.layers is not None
        net.threshold = float(net.decisions.layers[:, 0].median())
        masked = net.decide(images, sliced=False)
        promised = net.costs()
        alone = net.decide(images, sliced=True)
    assert len(promised.unique()) > 1
    torch.testing.assert_close(alone, masked, rtol=1e-4, atol=1e-5)
    assert torch.equal(net.costs(), promised)
    for cost in promised.unique()[:4]:
        row = int((promised == cost).nonzero()[0])
        assert count_macs(net, images[row : row + 1]) == int(cost)


def test_scores_of_one_and_a_low_threshold_give_the_network_that_it_is_of() -> None:
    supernet = small_supernet().eval()
    net = LayerChannelNet(supernet).eval()
    for module in net.modules():
        if isinstance(module, Scores):
            nn.init.zeros_(module.score.weight)
            nn.init.constant_(module.score.bias, 100.0)
    with torch.inference_mode():
        torch.testing.assert_close(net(IMAGES), supernet(IMAGES))
        assert int(net.costs()[0]) == net.total_macs + net.layers.macs() + sum(
            block.channels.macs() for block in net.blocks if block.channels is not None
        )
        net.threshold = 1.0
        net(IMAGES)
        assert net.used().tolist() == [0, 0]


def test_what_is_kept_is_scaled_by_its_score() -> None:
    net = scattered(LayerChannelNet(small_supernet().eval()))
    net.threshold = -1.0
    seen: list[Tensor] = []
    block = net.blocks[0]
    block.block.register_forward_hook(lambda _, args, out: seen.append(out - args[0]))
    outs: list[tuple[Tensor, Tensor]] = []
    block.register_forward_hook(lambda _, args, out: outs.append((args[0], out)))
    with torch.inference_mode():
        net.decide(IMAGES, sliced=False)
    assert net.decisions.layers is not None
    score = net.decisions.layers[:, 0, None, None, None]
    torch.testing.assert_close(outs[0][1] - outs[0][0], score * seen[0], rtol=1e-4, atol=1e-5)


def test_inner_groups_are_those_that_nothing_outside_of_the_block_touches() -> None:
    supernet = small_supernet()
    assert inner_groups(supernet, "block1") == ["block1.conv1"]
    narrow = own_classes(resnet20(4), torch.zeros(1, 3, 8, 8), step=1)
    assert inner_groups(narrow, "layer2.1") == ["layer2.1.conv1"]


def test_a_straight_through_score_is_hard_forward_and_smooth_backward() -> None:
    scores = torch.tensor([0.2, 0.8], requires_grad=True)
    kept = kept_or_not(scores, 0.5)
    assert kept.tolist() == [0, 1]
    kept.sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [1, 1]


def test_bounds_of_use_begin_at_the_target_and_are_let_go() -> None:
    assert usage_bounds(0.0, 0.4) == (0.4, 0.4)
    assert usage_bounds(0.33, 0.4) == pytest.approx((0.0, 1.0))
    assert usage_bounds(1.0, 0.4) == pytest.approx((0.0, 1.0))
    low, high = usage_bounds(0.165, 0.4)
    assert (low, high) == pytest.approx((0.2, 0.7))


def test_the_loss_is_its_formula() -> None:
    net = scattered(LayerChannelNet(small_supernet().eval()))
    cost = macs_model(net)
    logits, taught = net.decide(IMAGES, sliced=False), torch.randn(len(IMAGES), 4)
    found = layer_channel_loss(net, logits, LABELS, taught, cost, 0.5, 1.0)
    mean = float(cost(net).detach().mean())
    soft = (taught / 4).softmax(1)
    kd = 16 * float(-(soft * (logits.detach() / 4).log_softmax(1)).sum(1).mean())
    wanted = float(F.cross_entropy(logits.detach(), LABELS)) + 10 * (mean - 0.5) ** 2 + 0.5 * kd
    assert float(found.detach()) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.slow
def test_training_gives_gradients_to_scores_and_weights_and_brings_the_cost_to_its_aim() -> None:
    net = LayerChannelNet(small_supernet().train())
    net.train()
    cost = macs_model(net)
    logits = net(IMAGES)
    layer_channel_loss(net, logits, LABELS, None, cost, 0.5, 1.0).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    before = float(cost(net).detach().mean())
    train_layer_channel(net, gate_splits(), SETTINGS.model_copy(update={"epochs": 12, "aim": 0.6}), cost)
    after = look(net, gate_splits().train, cost, 0.5).costs.mean()
    assert abs(after - 0.6) < abs(before - 0.6)


@pytest.mark.slow
def test_one_net_comes_to_many_mean_costs_and_says_which() -> None:
    net = scattered(LayerChannelNet(small_supernet().eval()))
    cost = macs_model(net)
    look_at = functools.cache(lambda threshold: look(net, [(IMAGES, LABELS)], cost, threshold))
    low, high = reachable_costs(look_at)
    errors = [abs(look_at(threshold_for(look_at, t)).costs.mean() - t) for t in np.linspace(low, high, 5)]
    assert max(errors) < 0.03
    with pytest.raises(InvalidInput, match=rf"thresholds lead from {low:.4f} to {high:.4f}"):
        threshold_for(look_at, high + 0.1)


def test_a_look_at_a_threshold_leaves_the_net_its_own() -> None:
    net = scattered(LayerChannelNet(small_supernet().eval()))
    look(net, [(IMAGES, LABELS)], macs_model(net), 1.0)
    assert net.threshold == 0.5


def test_costs_in_time_are_a_line_over_the_channels_that_run() -> None:
    net = scattered(LayerChannelNet(small_supernet().eval()))
    cost = CostModel("latency_ms", 10.0, 2.0, ((1.0, 3.0), (2.0, 2.0)))
    with torch.inference_mode():
        net.decide(IMAGES, sliced=False)
        kept, shares = net.decisions.kept, net.decisions.shares
        wanted = 2 + kept[0] * (1 + 3 * shares[0][:, 0]) + kept[1] * (2 + 2 * shares[1][:, 0])
        torch.testing.assert_close(cost(net), wanted / 10)


@pytest.mark.slow
def test_a_resumed_training_equals_an_unbroken_one(tmp_path: Path) -> None:
    splits = gate_splits()

    class StopError(Exception):
        pass

    def stop(*_: object) -> None:
        calls.append(1)
        if len(calls) == 6:
            raise StopError

    calls: list[int] = []
    nets = [LayerChannelNet(small_supernet(dropout=0.1)) for _ in range(3)]
    for net in nets:
        net.load_state_dict(nets[0].state_dict())
    unbroken, broken, resumed = nets
    train_layer_channel(unbroken, splits, SETTINGS, macs_model(unbroken))
    broken.layers.score.weight.register_hook(stop)
    with create_run(tmp_path / "run", "") as run, pytest.raises(StopError):
        train_layer_channel(broken, splits, SETTINGS, macs_model(broken), run)
    with open_run(tmp_path / "run") as run:
        train_layer_channel(resumed, splits, SETTINGS, macs_model(resumed), run)
    wanted, found = unbroken.state_dict(), resumed.state_dict()
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []


def test_a_net_read_back_decides_and_answers_alike(tmp_path: Path) -> None:
    net = scattered(LayerChannelNet(small_supernet().eval(), 3))
    elastic = ElasticSettings(min_share=0.25, step=2)
    with create_run(tmp_path / "run", "") as run:
        model = ModelSettings(name="tests.small:small_net")
        points = [{"threshold": 0.5}, {"threshold": 0.3}]
        store_layer_channel(run, net, model, elastic, (1, 8, 8), points, {})
    loaded = load_layer_channel(tmp_path / "run" / "dynamic", 1).net
    assert isinstance(loaded, LayerChannelNet)
    net.threshold = 0.3
    with torch.inference_mode():
        assert torch.equal(loaded(IMAGES), net(IMAGES))
    assert torch.equal(loaded.costs(), net.costs())
    with pytest.raises(InvalidInput, match="operating points 0 to 1, got 5"):
        load_layer_channel(tmp_path / "run" / "dynamic", 5)


@pytest.mark.slow
def test_networks_without_blocks_or_with_sub_paths_are_refused() -> None:
    with pytest.raises(InvalidInput, match="no block of this network can be skipped"):
        LayerChannelNet(own_classes(make_toy("plain"), torch.zeros(1, 3, 8, 8)))
    adaptive = ElasticSettings(adaptive_depth=True)
    net = SmallResNet((2, 2), 4, 4, in_channels=1)
    with pytest.raises(InvalidInput, match=r"a run without \[elastic\] adaptive_depth"):
        LayerChannelNet(make_elastic(net, EXAMPLE, adaptive))


def test_heads_and_hidden_units_of_a_graph_are_scored() -> None:
    net = LayerChannelNet(vit_supernet().eval())
    assert [[group.name for group in block.groups] for block in net.blocks] == [
        [f"blocks.{i}.attention.qkv", f"blocks.{i}.mlp.0"] for i in range(2)
    ]
