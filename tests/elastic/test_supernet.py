from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from search_spaces import InvalidInput
from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.extraction import apply_plan, extract, layer_plan
from subnet_search.elastic.layers import WrongCouplingError
from subnet_search.elastic.padding import PaddedShortcut
from subnet_search.elastic.states import assign_state
from subnet_search.elastic.supernet import Supernet
from subnet_search.settings import ElasticSettings
from tests.toys import make_toy

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def supernet() -> Supernet:
    return make_elastic(make_toy("residual"), X, ElasticSettings(step=4)).eval()


def test_the_context_restores_the_largest_subnet_after_an_error(supernet: Supernet) -> None:
    before = supernet(X)
    with pytest.raises(ZeroDivisionError), supernet.subnet(supernet.space.smallest()):
        _ = 1 / 0
    assert torch.equal(supernet(X), before)


def test_a_skipped_block_hands_on_its_input(supernet: Supernet) -> None:
    config = {**supernet.space.largest(), "blocks.0": 0, "blocks.1": 0}
    with supernet.subnet(supernet.space.canonical(config)):
        assert torch.equal(supernet.model.blocks(X), X)


def test_configs_of_another_space_are_refused(supernet: Supernet) -> None:
    config = make_elastic(make_toy("inverted"), X).space.smallest()
    with pytest.raises(InvalidInput, match="unknown knob"):
        supernet.activate(config)


def test_a_wrong_coupling_fails_loudly(supernet: Supernet) -> None:
    supernet.activate(supernet.space.smallest())
    with pytest.raises(WrongCouplingError, match="received 16 channels where the active sub-net promises 4"):
        supernet.model.blocks[0].conv1(torch.zeros(1, 16, 8, 8))


def test_reorder_refuses_what_is_no_permutation_and_changes_nothing(supernet: Supernet) -> None:
    before = {n: p.clone() for n, p in supernet.named_parameters()}
    order = torch.arange(16).flip(0)
    for ranking in ({"stem.0": order, "blocks.0.conv1": torch.zeros(24)}, {"nobody": order}):
        with pytest.raises(InvalidInput):
            supernet.reorder(ranking)
    assert all(torch.equal(p, before[n]) for n, p in supernet.named_parameters())


def test_reorder_puts_the_best_units_first(supernet: Supernet) -> None:
    weight = supernet.model.blocks[0].conv1.weight.clone()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    supernet.reorder({"blocks.0.conv1": order})
    assert torch.equal(supernet.model.blocks[0].conv1.weight, weight[order])


def test_values_are_summed_over_the_channels_of_each_unit() -> None:
    supernet = make_elastic(make_toy("inverted"), X)
    values = torch.arange(32.0)
    sums = supernet.unit_sums("project.0", "grouped.0", values)
    assert torch.equal(sums, values.double().reshape(4, 8).sum(1))
    with pytest.raises(InvalidInput, match="no channels of group"):
        supernet.unit_sums("project.0", "head.0" if False else "expand.0", values)


def test_weights_carry_the_users_own_names(supernet: Supernet) -> None:
    assert list(supernet.model.state_dict()) == list(make_toy("residual").state_dict())


def test_a_subnet_is_rebuilt_from_its_description_and_weights(supernet: Supernet) -> None:
    for config in (supernet.space.smallest(), supernet.space.uniform(0.5)):
        net = extract(supernet, config, X)
        rebuilt = apply_plan(make_toy("residual", seed=5), layer_plan(supernet, config))
        assign_state(rebuilt, {name: t.detach().clone() for name, t in net.state_dict().items()})
        assert torch.equal(rebuilt.eval()(X), net(X))


@pytest.mark.parametrize(
    "plan",
    [
        {"layers": {"nowhere": {"out_channels": 3}}, "skipped": []},
        {"layers": {}, "skipped": ["nowhere.0"]},
        {"layers": {"stem.0": {"forward": 3}}, "skipped": []},
        {"layers": {}},
    ],
)
def test_a_description_that_does_not_fit_is_refused(plan: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match="does not fit ResidualNet"):
        apply_plan(make_toy("residual"), plan)


def test_weights_that_do_not_fit_change_nothing() -> None:
    net = nn.Linear(3, 2)
    before = net.weight.clone()
    good = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
    for bad in ({"weight": good["weight"]}, {**good, "more": good["bias"]}, {**good, "bias": torch.zeros(3)}):
        with pytest.raises(InvalidInput, match=r"build the network that the weights were saved from"):
            assign_state(net, bad)
    assert torch.equal(net.weight, before)


def test_the_padded_shortcut_is_option_a() -> None:
    x = torch.randn(2, 4, 7, 7)
    y = PaddedShortcut(4, 8, stride=2)(x)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert y[:, :2].abs().sum() == 0 == y[:, 6:].abs().sum()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_supernet_can_be_copied_and_pickled(
    copied: Callable[[nn.Module], Supernet], supernet: Supernet
) -> None:
    config = supernet.space.smallest()
    twin = copied(supernet)
    with supernet.subnet(config), twin.subnet(config):
        assert torch.equal(supernet(X), twin(X))
    twin.reorder({"stem.0": torch.arange(16).flip(0)})
    assert not torch.equal(supernet.model.stem[0].weight, twin.model.stem[0].weight)
    torch.testing.assert_close(extract(twin, twin.space.largest(), X)(X), supernet(X))
