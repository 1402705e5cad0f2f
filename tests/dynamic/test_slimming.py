from __future__ import annotations

import pytest
import torch

from search_spaces import InvalidInput
from subnet_search import recalibrate
from subnet_search.dynamic.building import Slimming, make_slimming, recalibrate_behind_gates
from subnet_search.dynamic.cutting import place_at
from subnet_search.dynamic.gates import DoubleHeadedGate
from subnet_search.dynamic.points import set_price
from subnet_search.dynamic.routes import Routes
from subnet_search.measure import count_macs
from tests.dynamic.made import IMAGES, LABELS, slimming_of
from tests.small import small_supernet
from tests.vit import vit_supernet

MADE = {
    "one gate": lambda: slimming_of(small_supernet()),
    "two gates": lambda: slimming_of(small_supernet(), ("bn", "block1"), count=2),
    "transformer": lambda: slimming_of(vit_supernet(), attention=True),
}


@pytest.fixture(
    params=[
        "one gate",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("two gates", "transformer")),
    ],
    scope="module",
)
def slimming(request: pytest.FixtureRequest) -> Slimming:
    return MADE[request.param]()


def test_images_grouped_by_decision_are_answered_as_one_by_one(slimming: Slimming) -> None:
    with torch.inference_mode():
        answers, ways = slimming.net.run(IMAGES)
        alone = [slimming.net.run(IMAGES[i : i + 1]) for i in range(len(IMAGES))]
    assert len(ways.unique()) > 1
    assert ways.tolist() == [int(way) for _, way in alone]
    torch.testing.assert_close(answers, torch.cat([found for found, _ in alone]))


def test_decisions_are_the_same_each_time_also_while_gates_are_trained(slimming: Slimming) -> None:
    with torch.inference_mode():
        first = slimming.net.train().run(IMAGES)
        second = slimming.net.eval().run(IMAGES)
    assert torch.equal(first[1], second[1])
    assert torch.equal(first[0], second[0])


def test_each_way_costs_what_is_promised_as_an_independent_count_says(slimming: Slimming) -> None:
    with torch.inference_mode():
        ways = slimming.net.run(IMAGES)[1]
    for way in ways.unique().tolist():
        image = IMAGES[ways == way][:1]
        assert count_macs(slimming.net, image) == slimming.net.macs[way]


@pytest.mark.slow
def test_every_route_is_the_supernet_with_its_own_statistics() -> None:
    supernet = small_supernet()
    slimming = slimming_of(supernet)
    with torch.inference_mode():
        answers, ways = slimming.net.run(IMAGES)
        for leaf, config in slimming.routes.configs.items():
            rows = ways == slimming.net.leaves.index(leaf)
            with supernet.subnet(config, recalibrate(supernet, config, [(IMAGES, LABELS)])):
                torch.testing.assert_close(answers[rows], supernet(IMAGES[rows]))


def test_a_gate_begins_without_weighing_and_its_attention_weighs_channels_of_either_layout() -> None:
    for axis, features in ((1, torch.rand(2, 6, 3, 3)), (2, torch.rand(2, 5, 6)), (1, torch.rand(2, 6))):
        gate = DoubleHeadedGate(6, axis, [0.1, 0.9], attention=True)
        assert torch.equal(gate(features)[1], features)
        assert gate.attention is not None
        torch.nn.init.normal_(gate.attention.weight)
        ratio = (gate(features)[1] / features).movedim(axis, -1).reshape(2, -1, 6)
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
        assert (ratio[0] - ratio[1]).abs().max() > 1e-4


@pytest.mark.slow
def test_price_moves_decisions_to_cheaper_routes() -> None:
    slimming = slimming_of(small_supernet())
    with torch.inference_mode():
        for price, wanted in ((1e6, 0), (-1e6, len(slimming.net.leaves) - 1)):
            set_price(slimming.net, price)
            assert set(slimming.net.run(IMAGES)[1].tolist()) == {wanted}


@pytest.mark.slow
def test_statistics_behind_an_attention_head_are_those_of_what_it_hands_on() -> None:
    slimming = slimming_of(small_supernet(), attention=True)
    net, gate = slimming.net, slimming.net.gate(())
    with torch.inference_mode():
        _, weighed = gate(net.parts["head"](IMAGES))
        seen: list[torch.Tensor] = []
        layer = net.parts["1"].get_submodule("block2.bn1")
        hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        net.parts["1"](weighed.clone())
        hook.remove()
        before = layer.running_mean.clone()
        recalibrate_behind_gates(net, [(IMAGES, LABELS)])
    torch.testing.assert_close(layer.running_mean, seen[0].mean((0, 2, 3)))
    assert not torch.allclose(before, layer.running_mean)
    assert not layer.training


def test_routes_that_differ_before_the_gate_are_refused() -> None:
    supernet = small_supernet()
    space, path = supernet.space, place_at(supernet).path
    wrong = Routes((path,), {(0,): space.smallest(), (1,): space.largest()})
    with pytest.raises(InvalidInput, match=r"something else before 'block1'|cannot be cut after"):
        make_slimming(supernet, wrong, [(IMAGES, LABELS)])
