from __future__ import annotations

import copy
import random
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces import InvalidInput, SubnetConfig, SubnetSearchError
from subnet_search.data import TensorBatches
from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.supernet import Supernet
from subnet_search.ranking import NoiseLevels, noise_levels, noise_ranking, predicted_increase, rank
from subnet_search.ranking.gates import Gates
from subnet_search.ranking.noise import learn_levels, weight_noise_ranking
from subnet_search.settings import ElasticSettings, TrainSettings
from subnet_search.small_models import digits_cnn
from subnet_search.training import PlainStep, train
from tests.small import EXAMPLE, small_data, small_net, small_splits, small_supernet
from tests.toys import TOYS, make_toy

BATCHES = [small_data(16, seed=1), small_data(16, seed=2)]


def test_the_level_learned_on_a_quadratic_is_the_root_of_reward_by_curvature() -> None:
    curvature = torch.logspace(-1.5, 1.5, 24, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)

    def loss(levels: Tensor) -> Tensor:
        noise = levels * torch.randn(64, 24, dtype=torch.float64, generator=generator)
        return (curvature / 2 * noise.square()).sum(dim=1).mean()

    found = learn_levels(loss, 24, reward=0.03, steps=800)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, (0.03 / curvature).sqrt(), rtol=0.05, atol=0)


def test_a_level_that_nothing_holds_grows_with_every_step() -> None:
    few, many = (learn_levels(lambda levels: 0 * levels.sum(), 2, steps=steps) for steps in (20, 80))
    assert (many > few).all()
    assert (few > 0.3).all()


@pytest.mark.parametrize(
    ("name", "value"), [("reward", 0.0), ("steps", 0), ("lr", -1.0), ("initial", np.inf)]
)
def test_what_must_be_above_zero_is_checked(name: str, value: float) -> None:
    with pytest.raises(InvalidInput, match=rf"{name} must be above 0 and finite, got {value}"):
        learn_levels(lambda levels: levels.sum(), 2, **{name: value})  # type: ignore[arg-type]


def answers_under(supernet: Supernet, noise: Tensor, x: Tensor) -> Tensor:
    """What the largest net answers while the noise `[B, count]` is what it is."""
    gates = Gates(supernet)
    with gates.open(), torch.no_grad():
        gates.shift = noise.expand(len(x), -1)
        return supernet(x)


def taking_away(supernet: Supernet, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise of -1 on all that a random sub-net drops; what that sub-net answers; the images."""
    x = torch.randn(3, *supernet.example.shape[1:], generator=torch.Generator().manual_seed(seed)).double()
    config = supernet.space.sample(np.random.default_rng(seed))
    kept = supernet.units_of(config)
    noise = [-(torch.arange(group.units) >= kept[name]).double() for name, group in supernet.groups.items()]
    noise.append(-torch.tensor([float(config[block] == 0) for block in supernet.blocks]).double())
    with supernet.subnet(config), torch.no_grad():
        return torch.cat(noise), supernet(x), x


@pytest.mark.slow
@pytest.mark.parametrize("toy", [*TOYS, "small net", "padded shortcuts"])
def test_noise_of_minus_one_takes_exactly_the_unit_or_block_away(toy: str) -> None:
    if toy in TOYS:
        supernet = make_elastic(make_toy(toy), torch.randn(1, 3, 8, 8), ElasticSettings(step=4))
    else:
        model = digits_cnn(8) if toy == "padded shortcuts" else small_net()
        supernet = make_elastic(model, torch.randn(1, 1, 8, 8), ElasticSettings(step=2))
    supernet = supernet.double().eval()
    gone = 0.0
    for seed in range(8):
        noise, expected, x = taking_away(supernet, seed)
        torch.testing.assert_close(answers_under(supernet, noise, x), expected)
        gone -= float(noise.sum())
    assert (gone > 0) == (supernet.space.size > 1)


def test_every_image_has_its_own_noise() -> None:
    supernet = small_supernet().double().eval()
    x = small_data(4, seed=0)[0].double()
    noise = 0.5 * torch.randn(4, Gates(supernet).count, generator=torch.Generator().manual_seed(0)).double()
    together = answers_under(supernet, noise, x)
    alone = [answers_under(supernet, noise[i : i + 1], x[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_nothing_of_the_supernet_or_of_chance_is_touched() -> None:
    supernet = small_supernet(dropout=0.5).train()
    supernet.model.stem.weight.requires_grad_(False)
    supernet.model.head.weight.grad = torch.ones_like(supernet.model.head.weight)
    asked = [parameter.requires_grad for parameter in supernet.parameters()]
    before = copy.deepcopy(supernet.state_dict())
    chance = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())  # type: ignore[index]
    shuffled = TensorBatches(*small_data(48, seed=1), 16, shuffle=True)
    for learned in (partial(noise_levels, steps=5), partial(weight_noise_ranking, steps=5)):
        learned(supernet, shuffled)
        assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())
        assert [parameter.requires_grad for parameter in supernet.parameters()] == asked
        assert torch.equal(supernet.model.head.weight.grad, torch.ones_like(supernet.model.head.weight))
        assert all(module.training for module in supernet.modules())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in supernet.modules())
        assert random.getstate() == chance[0]
        assert np.random.get_state()[1].tolist() == chance[1]  # type: ignore[index]
        assert torch.equal(torch.get_rng_state(), chance[2])


def test_hooks_and_gradients_come_back_after_a_failure() -> None:
    supernet = small_supernet()
    with pytest.raises(InvalidInput, match="labels must be class numbers from 0 to 3"):
        noise_levels(supernet, [(BATCHES[0][0], BATCHES[0][1] + 9)])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in supernet.modules())
    assert all(parameter.requires_grad for parameter in supernet.parameters())


@pytest.mark.parametrize("learned", [noise_ranking, weight_noise_ranking])
def test_chance_comes_from_the_seed_alone(learned: object) -> None:
    supernet = small_supernet()
    first, second, other = (
        rank(supernet, BATCHES, partial(learned, seed=seed, steps=8))  # type: ignore[arg-type]
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_ranking_puts_small_levels_first() -> None:
    supernet = small_supernet()
    levels, order = noise_levels(supernet, BATCHES, steps=8), noise_ranking(supernet, BATCHES, steps=8)
    for name, group in supernet.groups.items():
        assert levels.units[name].shape == (group.units,)
        assert levels.units[name][order[name]].tolist() == sorted(levels.units[name].tolist())
    assert set(levels.blocks) == {"block1", "block2"}


@pytest.mark.parametrize(
    "toy", ["perceptron", "plain", "inverted", "multiplied", "untracked", "tied weights"]
)
def test_any_network_can_be_ranked(toy: str) -> None:
    supernet = make_elastic(make_toy(toy), torch.randn(1, 3, 8, 8), ElasticSettings(step=4))
    batch = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 5
    for ranker in (noise_ranking, weight_noise_ranking):
        rank(supernet, [batch], partial(ranker, steps=3))


def test_batches_that_can_be_read_only_once_and_are_too_few_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"in 5 steps, but .* only once and ended after 2; give a list"):
        noise_levels(small_supernet(), iter(BATCHES), steps=5)
    noise_levels(small_supernet(), iter(BATCHES), steps=2)


@pytest.mark.parametrize("ranker", [noise_ranking, weight_noise_ranking])
def test_no_batch_is_refused(ranker: object) -> None:
    with pytest.raises(InvalidInput, match="at least one batch"):
        rank(small_supernet(), [], ranker)  # type: ignore[arg-type]


@pytest.mark.parametrize("ranker", [noise_ranking, weight_noise_ranking])
def test_broken_weights_are_told(ranker: object) -> None:
    supernet = small_supernet()
    with torch.no_grad():
        supernet.model.stem.weight[0] = torch.nan
    with pytest.raises(SubnetSearchError, match=r"not finite|diverged"):
        rank(supernet, BATCHES, partial(ranker, steps=4))  # type: ignore[arg-type]


def made_up(supernet: Supernet) -> NoiseLevels:
    rng = np.random.default_rng(0)
    units = {name: torch.tensor(rng.uniform(0.1, 2, group.units)) for name, group in supernet.groups.items()}
    return NoiseLevels(units, {"block1": 0.5, "block2": 0.2}, reward=0.02)


def test_the_predicted_increase_is_half_the_curvature_of_all_that_is_dropped() -> None:
    supernet = small_supernet()
    levels, space = made_up(supernet), supernet.space
    assert predicted_increase(levels, supernet, space.largest()) == 0
    dropped = SubnetConfig({**space.largest(), "block1": 0, "block1.conv1": 4, "head": 6})
    gone = [0.5, *levels.units["head"][6:].tolist()]  # widths inside the skipped block mean nothing
    assert predicted_increase(levels, supernet, dropped) == pytest.approx(sum(0.02 / 2 / a**2 for a in gone))


def test_levels_move_with_the_units_that_they_belong_to() -> None:
    supernet = small_supernet()
    levels = made_up(supernet)
    order = {"head": torch.arange(16).flip(0)}
    moved = levels.reordered(order)
    assert moved.units["head"].tolist() == levels.units["head"].tolist()[::-1]
    assert torch.equal(moved.units["stem"], levels.units["stem"])
    assert (moved.blocks, moved.reward) == (levels.blocks, levels.reward)


def test_levels_of_another_network_are_refused() -> None:
    other = make_elastic(digits_cnn(8), torch.randn(1, 1, 8, 8), ElasticSettings(step=2))
    with pytest.raises(InvalidInput, match=r"learned on another network: .* differ in .*; call noise_levels"):
        predicted_increase(made_up(small_supernet()), other, other.space.largest())


@pytest.fixture(scope="module")
def trained() -> Supernet:
    supernet = small_supernet()
    train(supernet, small_splits(96), PlainStep(), TrainSettings(epochs=12, lr=0.05, device="cpu"))
    return supernet.eval()


def deletion_losses(supernet: Supernet, name: str, reader: str) -> Tensor:
    """By how much the loss grows without each unit of a group."""
    images, labels = small_data(96, seed=1)
    weight, losses = supernet.model.get_submodule(reader).weight, []
    kept = weight.detach().clone()
    with torch.no_grad():
        for unit in range(supernet.groups[name].units):
            weight[:, unit] = 0
            losses.append(F.cross_entropy(supernet(images), labels))
            weight.copy_(kept)
    return torch.stack(losses)


@pytest.mark.slow
@pytest.mark.parametrize("ranker", [noise_ranking, weight_noise_ranking])
def test_units_ranked_last_cost_less_than_those_ranked_first(trained: Supernet, ranker: object) -> None:
    ranking = rank(trained, [small_data(96, seed=1)], ranker)  # type: ignore[arg-type]
    for name, reader in (("block1.conv1", "block1.conv2"), ("head", "classifier")):
        losses = deletion_losses(trained, name, reader)[ranking[name]]
        half = len(losses) // 2
        assert losses[half:].mean() < 0.5 * losses[:half].mean()


def test_the_block_that_matters_more_has_the_smaller_level(trained: Supernet) -> None:
    images, labels = small_data(96, seed=1)
    levels = noise_levels(trained, [(images, labels)], steps=200)
    losses = {}
    for block in trained.blocks:
        with trained.subnet(SubnetConfig({**trained.space.largest(), block: 0})), torch.no_grad():
            losses[block] = F.cross_entropy(trained(images), labels).item()
    assert (losses["block1"] < losses["block2"]) == (levels.blocks["block1"] > levels.blocks["block2"])


def test_weight_noise_ranks_the_whole_net_whatever_is_active() -> None:
    supernet = small_supernet()
    wanted = weight_noise_ranking(supernet, [small_data(16, seed=1)], steps=5)
    supernet.activate(supernet.space.smallest())
    found = weight_noise_ranking(supernet, [small_data(16, seed=1)], steps=5)
    assert all(torch.equal(order, found[name]) for name, order in wanted.items())


class InPlace(nn.Module):
    """A residual block that changes its input: by an activation, or by adding to it."""

    def __init__(self, adds: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.adds = adds

    def forward(self, x: Tensor) -> Tensor:
        if self.adds:
            x += self.conv(x.clone()).tanh()
            return x
        return x + self.conv(x.relu_())


@pytest.mark.parametrize("adds", [True, False])
def test_a_block_that_changes_its_input_in_place_is_gated_all_the_same(adds: bool) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), InPlace(adds), nn.Flatten(), nn.Linear(4 * 64, 3))
    supernet = make_elastic(net.double(), EXAMPLE.double(), ElasticSettings(step=4))
    assert supernet.blocks == ("1",)
    gates, x = Gates(supernet), torch.randn(3, 1, 8, 8).double()
    shift = torch.zeros(3, gates.count).double()
    shift[:, -1] = -1
    with gates.open(), torch.no_grad():
        gates.shift = shift
        found = supernet(x.clone())
    config = supernet.space.canonical({**supernet.space.largest(), supernet.blocks[0]: 0})
    with supernet.subnet(config), torch.no_grad():
        torch.testing.assert_close(found, supernet(x.clone()))
