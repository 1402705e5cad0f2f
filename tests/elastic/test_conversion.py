"""Properties that conversion and extraction must have on every network that keeps its own classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from subnet_search import small_models
from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.extraction import difference_on, extract
from subnet_search.elastic.supernet import Supernet
from subnet_search.settings import ElasticSettings
from tests.elastic.judges import configs, peak_by_watching
from tests.toys import TOYS, make_toy

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SMALL_STEPS = ElasticSettings(step=4, form="own classes")


def network(name: str) -> nn.Module:
    if name == "resnet20":
        torch.manual_seed(0)
        return small_models.resnet20(width=8).eval()
    return make_toy(name)


NAMES = [*TOYS, "resnet20"]


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, Supernet]:
    model = network(request.param)
    return model, make_elastic(model, X, SMALL_STEPS)


def macs_of(net: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    return counter.get_total_flops() // 2


def test_the_largest_subnet_is_bit_equal_to_the_model(pair: tuple[nn.Module, Supernet]) -> None:
    model, supernet = pair
    assert torch.equal(model(X), supernet.eval()(X))


def test_the_model_given_is_left_untouched(pair: tuple[nn.Module, Supernet]) -> None:
    model, supernet = pair
    with supernet.subnet(supernet.space.smallest()):
        assert all(type(m).__module__ != "subnet_search.elastic.layers" for m in model.modules())
        shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in supernet.parameters()}
    assert not shared


def test_extracted_subnets_compute_what_the_supernet_computes(pair: tuple[nn.Module, Supernet]) -> None:
    _, supernet = pair
    supernet.eval()
    for config in configs(supernet):
        with supernet.subnet(config):
            active = supernet(X)
        net = extract(supernet, config, X)
        torch.testing.assert_close(net(X), active, atol=1e-5, rtol=1e-5)
        own_classes = {type(m) for m in pair[0].modules()} | {nn.Identity}
        assert {type(m) for m in net.modules()} <= own_classes


def test_different_configs_compute_different_things(pair: tuple[nn.Module, Supernet]) -> None:
    _, supernet = pair
    ends = [extract(supernet, c, X)(X) for c in (supernet.space.smallest(), supernet.space.largest())]
    assert not torch.allclose(*ends)


def test_macs_and_params_equal_an_independent_count(pair: tuple[nn.Module, Supernet]) -> None:
    _, supernet = pair
    for config in configs(supernet):
        net = extract(supernet, config, X)
        row = supernet.space.encode([config])
        assert supernet.costs.macs(row)[0] == macs_of(net, X[:1])
        assert supernet.costs.params(row)[0] == sum(p.numel() for p in net.parameters())
        assert supernet.costs.weight_bytes(row)[0] == sum(p.nbytes for p in net.parameters())


@pytest.mark.slow
def test_peak_activation_equals_what_execution_needs(pair: tuple[nn.Module, Supernet]) -> None:
    model, supernet = pair
    if any(type(m).__name__ == "Branching" for m in model.modules()):
        pytest.skip("the watcher traces the net, and this one cannot be traced")
    for config in configs(supernet):
        net = extract(supernet, config, X)
        promised = supernet.costs.peak_activation_bytes(supernet.space.encode([config]))[0]
        assert promised == peak_by_watching(net, X[:1]), dict(config)


def test_every_subnet_trains_and_only_the_largest_writes_statistics(
    pair: tuple[nn.Module, Supernet],
) -> None:
    _, supernet = pair
    supernet.train()
    buffers = {name: tensor.clone() for name, tensor in supernet.named_buffers()}
    for config in configs(supernet):
        if config != supernet.space.largest():
            with supernet.subnet(config):
                supernet(X).sum().backward()
    assert all(torch.equal(tensor, buffers[name]) for name, tensor in supernet.named_buffers())
    supernet.eval()


def test_reordering_does_not_change_the_function(pair: tuple[nn.Module, Supernet]) -> None:
    model, _ = pair
    supernet = make_elastic(network_like(model), X.double(), SMALL_STEPS).eval()
    before, rng = supernet(X.double()), np.random.default_rng(1)
    weights = {name: p.clone() for name, p in supernet.named_parameters()}
    supernet.reorder({n: torch.from_numpy(rng.permutation(g.units)) for n, g in supernet.groups.items()})
    torch.testing.assert_close(supernet(X.double()), before, atol=1e-9, rtol=1e-9)
    assert any(not torch.equal(p, weights[name]) for name, p in supernet.named_parameters())


def network_like(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model).double()


def test_reordered_subnets_are_still_extracted_exactly(pair: tuple[nn.Module, Supernet]) -> None:
    model, _ = pair
    supernet, rng = make_elastic(model, X, SMALL_STEPS).eval(), np.random.default_rng(2)
    supernet.reorder({n: torch.from_numpy(rng.permutation(g.units)) for n, g in supernet.groups.items()})
    for config in supernet.space.sample(rng, 3):
        difference, scale = difference_on(supernet, config, extract(supernet, config, X), X)
        assert difference <= 1e-5 * max(1.0, scale)


def test_every_parameter_of_the_largest_subnet_gets_a_gradient(pair: tuple[nn.Module, Supernet]) -> None:
    _, supernet = pair
    supernet.train()
    supernet.zero_grad()
    supernet(X).sum().backward()
    assert [n for n, p in supernet.named_parameters() if p.grad is None] == []
