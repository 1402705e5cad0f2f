from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from search_spaces import InvalidInput, SubnetConfig
from subnet_search import extract, make_elastic
from subnet_search.dynamic.cutting import cut, place_at, places
from subnet_search.dynamic.routes import agreeing, routes_among, uniform_routes
from subnet_search.elastic.supernet import Supernet
from subnet_search.settings import ElasticSettings
from tests.small import EXAMPLE, small_supernet
from tests.toys import make_toy
from tests.vit import vit_supernet


@pytest.mark.parametrize(
    "name",
    [
        "residual",
        "long skip",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("plain", "inverted", "partly opaque")),
    ],
)
def test_a_sub_net_in_parts_answers_as_a_whole(name: str) -> None:
    example = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    supernet = make_elastic(make_toy(name), example)
    net, images = extract(supernet, supernet.space.uniform(0.5)).eval(), example.repeat(3, 1, 1, 1)
    found = places(supernet)
    assert found
    for place in found:
        head, tail = cut(net, [place.path], example)
        torch.testing.assert_close(tail(head(images)), net(images))


@pytest.mark.parametrize("make", [small_supernet, pytest.param(vit_supernet, marks=pytest.mark.slow)])
def test_what_comes_before_a_place_depends_on_its_knobs_alone(make: object) -> None:
    supernet: Supernet = make().eval()  # type: ignore[operator]
    place = place_at(supernet)
    space = supernet.space
    least = {knob.name: knob.choices[0] for knob in space.knobs}

    def head_with(names: Iterable[str]) -> Tensor:
        changed = {**space.largest(), **{name: least[name] for name in names}}
        net = extract(supernet, space.canonical(SubnetConfig(changed))).eval()
        head: Tensor = cut(net, [place.path], EXAMPLE)[0](EXAMPLE)
        return head

    behind = least.keys() - place.knobs
    whole = head_with(())
    assert behind
    assert torch.equal(head_with(behind), whole)
    for name in place.knobs - set(supernet.blocks):  # each of them matters
        head = head_with([name])
        assert head.shape != whole.shape or not torch.equal(head, whole), name


def test_a_gate_stands_where_a_tenth_is_computed_or_where_the_user_says() -> None:
    supernet = small_supernet()
    assert place_at(supernet).path == "block1"
    assert place_at(supernet, "stem").macs_share < place_at(supernet, "block2").macs_share < 1
    with pytest.raises(InvalidInput, match=r"cannot stand after 'blok1'.*block1"):
        place_at(supernet, "blok1")
    with pytest.raises(InvalidInput, match="It can stand after bn, block1"):
        place_at(supernet, "classifier")


def test_what_else_a_container_holds_is_not_decided_before() -> None:
    supernet = make_elastic(make_toy("plain"), torch.zeros(1, 3, 8, 8))
    assert place_at(supernet, "features.0").knobs == {"features.0.0"}
    assert place_at(supernet, "features").knobs == {"features.0.0", "features.2.0"}


class Permuted(nn.Module):
    """Channels go last for a linear layer and come back."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(16, 16)
        self.last, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(self.last(x).mean((2, 3)))


@pytest.mark.slow
def test_the_axis_of_channels_is_found_where_it_was_moved() -> None:
    supernet = make_elastic(Permuted().eval(), EXAMPLE, ElasticSettings(step=4))
    found = {place.path: (place.channels, place.axis) for place in places(supernet)}
    assert found["stem"] == (16, 1)
    assert found["mix"] == (16, 3)
    head, tail = cut(extract(supernet, supernet.space.largest()).eval(), ["mix"], EXAMPLE)
    assert head(EXAMPLE).shape[3] == 16
    assert tail(head(EXAMPLE)).shape == (1, 4)


class SizeOfInput(nn.Module):
    """Its last layers ask for the size of the first input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid = nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.last, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        wide = nn.functional.interpolate(self.mid(self.stem(x)), size=x.shape[-2:])
        return self.head(self.last(wide).mean((2, 3)))


def test_a_network_that_cannot_be_cut_there_is_refused() -> None:
    supernet = make_elastic(SizeOfInput().eval(), EXAMPLE)
    net = extract(supernet, supernet.space.largest())
    with pytest.raises(InvalidInput, match="cannot be cut after stem"):
        cut(net, ["stem"], EXAMPLE)
    cut(net, ["last"], EXAMPLE)


def test_uniform_routes_agree_before_the_gate_and_rise_in_cost_behind_it() -> None:
    supernet = small_supernet()
    place = place_at(supernet)
    routes = uniform_routes(supernet, [place], count=3, head_share=0.5)
    configs = [routes.configs[leaf] for leaf in routes.leaves]
    head = supernet.space.uniform(0.5)
    assert all(config[name] == head[name] for config in configs for name in place.knobs)
    macs = supernet.costs.macs(supernet.space.encode(configs)).tolist()
    assert macs == sorted(set(macs))
    assert agreeing(place, [*configs, supernet.space.largest()]) == configs
    assert routes_among(supernet, place, configs[::-1]).configs == routes.configs


def test_gates_one_behind_the_other_decide_on_what_lies_between() -> None:
    supernet = small_supernet()
    first, second = (place_at(supernet, path) for path in ("block1", "block2"))
    routes = uniform_routes(supernet, [first, second], count=2)
    assert routes.leaves == ((0, 0), (0, 1), (1, 0), (1, 1))
    assert routes.prefixes == ((), (0,), (1,))
    a, b, c = (routes.configs[leaf] for leaf in ((0, 0), (0, 1), (1, 1)))
    assert {name for name in a if a[name] != b[name]}.isdisjoint(second.knobs)
    assert {name for name in b if b[name] != c[name]} <= second.knobs - first.knobs


def test_routes_that_are_none_are_refused() -> None:
    supernet = small_supernet()
    place = place_at(supernet)
    space = supernet.space
    with pytest.raises(InvalidInput, match="at least two different sub-nets"):
        routes_among(supernet, place, [space.largest(), space.largest()])
    with pytest.raises(InvalidInput, match="must agree on what comes before, but they differ in"):
        routes_among(supernet, place, [space.largest(), space.smallest()])
    with pytest.raises(InvalidInput, match="at least two sub-nets"):
        uniform_routes(supernet, [place], count=1)
    with pytest.raises(InvalidInput, match="one behind the other"):
        uniform_routes(supernet, [place_at(supernet, "block2"), place], count=2)
    with pytest.raises(InvalidInput, match="up to 32"):
        uniform_routes(supernet, [place_at(supernet, "stem"), place], count=6)
