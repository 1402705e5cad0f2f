from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from search_spaces import InvalidInput
from subnet_search import make_elastic
from subnet_search.data import Batch, TensorBatches, load_splits
from subnet_search.deciding import OneWay
from subnet_search.dynamic.building import make_slimming
from subnet_search.dynamic.cutting import place_at
from subnet_search.dynamic.gate_training import (
    GateCollapse,
    gate_loss,
    gather,
    guide_targets,
    train_gates,
    value_loss,
)
from subnet_search.dynamic.gates import straight_through
from subnet_search.dynamic.points import (
    check_targets,
    default_targets,
    point_at,
    price_for,
    reachable,
    set_price,
    ways_at,
)
from subnet_search.dynamic.routes import routes_among
from subnet_search.dynamic.slimming import leaf_weights
from subnet_search.measure import count_macs
from subnet_search.record import create_run, open_run
from subnet_search.settings import DataSettings, DynamicSettings, ElasticSettings, ModelSettings
from tests.dynamic.made import IMAGES, LABELS, gate_splits, slimming_of
from tests.small import EXAMPLE, small_net, small_supernet

SETTINGS = DynamicSettings(epochs=3, device="cpu", batch_size=16, loss="sandwich")
LEAVES = ((0,), (1,), (2,))


@pytest.mark.parametrize(("hard", "wanted"), [("try_best", [0, 1, 1, 0]), ("give_up", [0, 1, 0, 0])])
def test_easy_images_aim_at_the_smallest_route_and_hopeless_ones_as_asked(
    hard: str, wanted: list[int]
) -> None:
    smallest_is_right = torch.tensor([True, False, False, True])
    largest_is_right = torch.tensor([True, True, False, False])
    right = torch.stack([smallest_is_right, torch.ones(4, dtype=torch.bool), largest_is_right], dim=1)
    assert guide_targets(right, hard).tolist() == wanted  # type: ignore[arg-type]


def loss_of(logits: torch.Tensor, **given: object) -> torch.Tensor:
    torch.manual_seed(0)
    answers = torch.randn(8, 3, 4)
    settings = SETTINGS.model_copy(update=given)
    shares = torch.tensor([0.2, 0.6, 1.0])
    return gate_loss(LEAVES, shares, answers, {(): logits}, torch.arange(8) % 4, settings, aim=0.5)


def test_the_guide_reads_logits_so_that_a_sure_gate_brings_its_loss_to_nothing() -> None:
    torch.manual_seed(0)
    answers, labels = torch.randn(8, 3, 4), torch.arange(8) % 4
    aims = guide_targets(answers.argmax(2) == labels[:, None], "try_best") * 2
    sure = 30.0 * F.one_hot(aims, 3).float()
    without, with_guide = (loss_of(sure, guide=guide, macs_weight=0.0) for guide in (0.0, 1.0))
    assert float(with_guide - without) < 1e-6
    assert float(loss_of(-sure, guide=1.0) - loss_of(-sure, guide=0.0)) > 10


def test_the_cost_term_is_relative_and_moves_the_gate_towards_the_aim() -> None:
    logits = torch.zeros(8, 3, requires_grad=True)
    found = []
    for weight in (0.0, 100.0):
        [gradient] = torch.autograd.grad(loss_of(logits, guide=0.0, macs_weight=weight), logits)
        found.append(gradient)
    torch.manual_seed(0)
    torch.randn(8, 3, 4)
    mean = float((straight_through(torch.zeros(8, 3)) @ torch.tensor([0.2, 0.6, 1.0])).mean())
    change = (found[1] - found[0]).mean(0)
    assert change.abs().max() > 1e-2
    assert (change[2] > change[0]) == (mean > 0.5)  # descent lowers what costs too much


def test_values_are_the_right_classes_probabilities_behind_each_choice() -> None:
    torch.manual_seed(0)
    leaves, labels = ((0, 0), (0, 1), (1, 0), (1, 1)), torch.arange(8) % 4
    answers = torch.randn(8, 4, 4)
    right = torch.stack([answers[i].softmax(1)[:, labels[i]] for i in range(8)])
    true = {
        (): torch.stack([right[:, :2].mean(1), right[:, 2:].mean(1)], dim=1),
        (0,): right[:, :2],
        (1,): right[:, 2:],
    }
    settings = SETTINGS.model_copy(update={"loss": "values"})
    shares = torch.tensor([0.2, 0.5, 0.7, 1.0])
    assert float(gate_loss(leaves, shares, answers, true, labels, settings, aim=0.5)) < 1e-12
    off = {**true, (1,): true[1,] + torch.tensor([0.3, -0.4])}
    assert float(value_loss(leaves, answers, off, labels)) == pytest.approx((0.09 + 0.16) / 3)


def test_routes_are_trained_with_values_only_where_gates_weigh_channels() -> None:
    answers = torch.randn(8, 3, 4, requires_grad=True)
    logits, labels = torch.zeros(8, 3), torch.arange(8) % 4
    frozen = value_loss(LEAVES, answers.detach(), {(): logits}, labels)
    whole = value_loss(LEAVES, answers, {(): logits}, labels)
    [gradient] = torch.autograd.grad(whole, answers)
    wanted = sum(float(F.cross_entropy(answers.detach()[:, way], labels)) for way in range(3)) / 3
    assert float((whole - frozen).detach()) == pytest.approx(wanted, rel=1e-5)
    assert (gradient[torch.arange(8), :, labels] < 0).all()  # towards the labels


def test_a_straight_through_sample_is_one_hot_with_the_frequencies_of_its_logits() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([2.0, 0.0, 1.0]).repeat(20_000, 1)
    sample = straight_through(logits)
    assert sample.unique().tolist() == [0.0, 1.0]
    torch.testing.assert_close(sample.mean(0), logits[0].softmax(0), atol=0.02, rtol=0)


def test_the_weights_of_all_ways_are_products_that_sum_to_one() -> None:
    leaves = ((0, 0), (0, 1), (1, 0), (1, 1))
    gates = {prefix: torch.randn(5, 2) for prefix in ((), (0,), (1,))}
    weights = leaf_weights(leaves, gates, lambda logits: logits.softmax(1))
    torch.testing.assert_close(weights.sum(1), torch.ones(5))
    torch.testing.assert_close(weights[:, 2], gates[()].softmax(1)[:, 1] * gates[(1,)].softmax(1)[:, 0])


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sandwich", "values"])
@pytest.mark.parametrize("attention", [False, True])
def test_gates_learn_what_their_features_tell_and_routes_stay_as_they_are(attention: bool, loss: str) -> None:
    slimming = slimming_of(small_supernet(), attention=attention, values=loss == "values")
    net = slimming.net
    before = {name: tensor.clone() for name, tensor in net.parts.named_parameters()}
    changed = {"epochs": 30, "attention": attention, "macs_weight": 0.0, "loss": loss}
    settings = SETTINGS.model_copy(update=changed)
    calibration = [(IMAGES, LABELS)]
    losses = train_gates(slimming, gate_splits(), settings, calibration=calibration)
    assert losses[-1] < 0.8 * losses[0]
    after = dict(net.parts.named_parameters())
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_only_the_gate_split_is_read() -> None:
    slimming, splits = slimming_of(small_supernet()), gate_splits()

    class Forbidden(list[Batch]):
        def __iter__(self) -> None:  # type: ignore[override]
            raise AssertionError("was read")

    for name in ("train", "search_val", "test", "calibration"):
        object.__setattr__(splits, name, Forbidden())
    train_gates(slimming, splits, SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize("attention", [False, True])
def test_a_resumed_training_of_gates_equals_an_unbroken_one(attention: bool, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"attention": attention, "checkpoint_seconds": 1e-9})
    splits, calibration = gate_splits(), [(IMAGES, LABELS)]
    unbroken, broken, resumed = (slimming_of(small_supernet(), attention=attention) for _ in range(3))
    train_gates(unbroken, splits, settings, calibration=calibration)

    class StopError(Exception):
        pass

    def stop(*_: object) -> None:
        calls.append(1)
        if len(calls) == 7:
            raise StopError

    calls: list[int] = []
    broken.net.gate(()).slimming.weight.register_hook(stop)
    with create_run(tmp_path / "run", "") as run, pytest.raises(StopError):
        train_gates(broken, splits, settings, run, calibration=calibration)
    with open_run(tmp_path / "run") as run:
        train_gates(resumed, splits, settings, run, calibration=calibration)
    wanted, found = unbroken.net.gates.state_dict(), resumed.net.gates.state_dict()
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []


@pytest.mark.slow
def test_a_price_brings_the_mean_cost_to_its_target_and_the_net_then_runs_so() -> None:
    slimming = slimming_of(small_supernet())
    net, seen = slimming.net, gather(slimming.net, [(IMAGES, LABELS)])
    for target in default_targets(slimming, 4):
        price = price_for(slimming, seen, target)
        point = point_at(slimming, seen, price, target)
        gap = max(np.diff(slimming.shares().numpy())) / len(LABELS)  # one image more or less
        assert abs(point.mean_macs / slimming.largest_macs - target) <= gap
        set_price(net, price)
        with torch.inference_mode():
            answers, ways = net.run(IMAGES)
        assert torch.equal(ways, ways_at(net, seen, price))
        assert point.top1_percent == pytest.approx(100 * float((answers.argmax(1) == LABELS).double().mean()))
        assert point.mean_macs == pytest.approx(np.mean([net.macs[way] for way in ways]))
        assert sum(point.histogram) == pytest.approx(1, abs=1e-6)


def test_a_target_out_of_reach_is_answered_with_the_range() -> None:
    slimming = slimming_of(small_supernet())
    low, high = reachable(slimming)
    with pytest.raises(InvalidInput, match=rf"cannot be reached: the routes cost {low:.4f} to {high:.4f}"):
        check_targets(slimming, [low - 0.01])


@pytest.mark.slow
def test_a_gate_that_decides_nothing_is_told_of_with_what_to_change() -> None:
    slimming = slimming_of(small_supernet())
    settings = SETTINGS.model_copy(update={"guide": 0.0, "macs_weight": 1000.0, "aim": 0.01, "epochs": 20})
    with pytest.warns(GateCollapse, match=r"along route 0, so it decides nothing\. Set the gate later"):
        train_gates(slimming, gate_splits(), settings)


def test_gates_of_another_loss_are_refused() -> None:
    with pytest.raises(InvalidInput, match='got loss "sandwich"; build them with make_slimming'):
        train_gates(slimming_of(small_supernet(), values=True), gate_splits(), SETTINGS)


def test_data_without_a_gate_split_are_refused() -> None:
    splits = dataclasses.replace(gate_splits(), gate=None)
    with pytest.raises(InvalidInput, match="gate_share above 0"):
        train_gates(slimming_of(small_supernet()), splits, SETTINGS)


def test_the_gate_split_is_of_images_that_training_never_shows() -> None:
    splits = load_splits(DataSettings(source="digits", gate_share=0.1), ModelSettings(name="x"))
    assert isinstance(splits.gate, TensorBatches)
    assert isinstance(splits.train, TensorBatches)
    assert isinstance(splits.calibration, TensorBatches)
    held = {image.numpy().tobytes() for image in splits.gate.images}
    shown = {image.numpy().tobytes() for image in (*splits.train.images, *splits.calibration.images)}
    assert len(splits.gate.images) > 100
    assert len(held & shown) == 0


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize(
    ("label", "came"),
    [(-1, "from 0 to 3, got -1 to -1"), (4, "got 4 to 4"), (-100, "got -100 to"), (0.5, "torch.float32")],
)
def test_labels_that_are_no_class_are_refused(label: float, came: str, attention: bool) -> None:
    wrong = TensorBatches(IMAGES, torch.full((len(IMAGES),), label), 16)
    slimming = slimming_of(small_supernet(), attention=attention, values=True)
    settings = DynamicSettings(epochs=1, attention=attention, device="cpu")
    with pytest.raises(InvalidInput, match=came):
        train_gates(
            slimming, dataclasses.replace(gate_splits(), gate=wrong), settings, calibration=[(IMAGES, LABELS)]
        )


def test_routes_of_smaller_images_are_run_as_they_were_measured() -> None:
    smaller = ElasticSettings(min_share=0.5, step=4, resolution=(4, 8))
    supernet = make_elastic(small_net(), EXAMPLE, smaller).eval()
    config = {**supernet.space.largest(), "resolution": 4}
    place = place_at(supernet, "bn")
    routes = routes_among(
        supernet, place, [supernet.space.canonical({**config, "block1.conv1": size}) for size in (8, 16)]
    )
    net = make_slimming(supernet, routes, [(IMAGES, LABELS)]).net
    seen = gather(net, [(IMAGES, LABELS)])
    with torch.inference_mode():
        answers, ways = net.run(IMAGES)
    torch.testing.assert_close(answers, seen.answers[torch.arange(len(ways)), ways])
    for way, macs in zip(net.leaves, net.macs, strict=True):
        assert count_macs(OneWay(net, way), EXAMPLE) == macs
