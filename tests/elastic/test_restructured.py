"""Sub-paths and branches as spaces of a supernet."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from search_spaces import InvalidInput
from search_spaces.presets import BRANCH_KNOB
from subnet_search import ElasticSettings, extract, make_elastic, recalibrate
from subnet_search.elastic.branches import make_triangular
from subnet_search.elastic.restructured import all_branches
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure import count_macs
from subnet_search.small_models import SmallResNet
from subnet_search.training import SandwichStep

X = torch.linspace(-1, 1, 5 * 64).reshape(5, 1, 8, 8).sin()


def net(blocks: tuple[int, ...] = (2, 2), width: int = 8) -> SmallResNet:
    torch.manual_seed(0)
    return SmallResNet(blocks, width, 4, in_channels=1)


def of(blocks: tuple[int, ...] = (2, 2), **settings: object) -> Supernet:
    return make_elastic(net(blocks), X[:1], ElasticSettings(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings", [{"adaptive_depth": True}, {"branches": 4}, {"branches": 2, "adaptive_depth": True}]
)
def test_costs_are_those_of_the_networks_cut_out(settings: dict[str, object]) -> None:
    supernet = of((4, 2), **settings)
    space, rng = supernet.space, np.random.default_rng(0)
    for config in (space.smallest(), *space.sample(rng, 3)):
        statistics = recalibrate(supernet, config, [X])
        plain = extract(supernet, config, X, statistics)  # and compares it with the active sub-net
        row = space.encode([config])
        assert count_macs(plain, X[:1]) == supernet.costs.macs(row)[0]
        assert sum(p.numel() for p in plain.parameters()) == supernet.costs.params(row)[0]
        assert not any("at_skip" in name for name in plain.state_dict())


def test_the_blocks_of_a_sub_path_have_one_knob_and_mandatory_ones_none() -> None:
    supernet = of((5, 2), adaptive_depth=True)
    assert [(knob.name, knob.kind) for knob in supernet.space.knobs] == [
        ("layer1.3", "depth"),
        ("layer2.1", "depth"),
    ]
    assert supernet.depth_of == {"layer1.3": "layer1.3", "layer1.4": "layer1.3", "layer2.1": "layer2.1"}
    paths = supernet.sub_paths
    assert paths is not None
    assert list(paths.configs().values())[-1] == supernet.space.smallest()
    supernet.activate(paths.configs()["TF"])
    skipped = [supernet.model.get_submodule(f"layer1.{i}").skipped for i in range(1, 5)]
    assert skipped == [False, False, True, True]


def test_a_sub_net_of_some_branches_is_what_the_one_pass_and_the_rows_say() -> None:
    supernet = of(branches=4, depth=False).eval()
    answers = all_branches(supernet, X)
    whole = extract(supernet, supernet.space.largest(), X).eval()
    rows = list(make_triangular(whole, X[:1], 4).eval().rows(X))
    for k, (answer, row) in enumerate(zip(answers, rows, strict=True), start=1):
        with supernet.subnet(supernet.space.canonical({BRANCH_KNOB: k})):
            torch.testing.assert_close(supernet(X), answer)
        torch.testing.assert_close(row, answer)
    assert supernet.branches is not None
    assert sum(supernet.branches.row_macs) < 0.65 * count_macs(whole, X[:1])


def test_no_step_fills_the_weights_above_the_diagonal() -> None:
    supernet = of(branches=2)
    batch = X, torch.tensor([0, 1, 2, 3, 0])
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        SandwichStep()(supernet, batch, np.random.default_rng(0))
        optimizer.step()
    assert supernet.branches is not None
    for path, allowed in supernet.branches.allowed.items():
        weight = supernet.model.get_submodule(path).weight
        assert isinstance(weight, torch.Tensor)
        kept = allowed.expand_as(weight) > 0
        assert not weight[~kept].any()
        assert weight[kept].all()


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3), nn.GroupNorm(1, 8)
        self.linear = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(self.conv(x)).mean((2, 3)))


def test_what_cannot_be_says_the_way_out() -> None:
    with pytest.raises(InvalidInput, match="do not fall into 3 equal groups"):
        of(branches=3)
    with pytest.raises(InvalidInput, match="which may mix the channels of all groups"):
        make_elastic(Mixing(), X[:1], ElasticSettings(branches=2))
    with pytest.raises(InvalidInput, match="needs residual blocks that may be skipped"):
        make_elastic(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2)), X[:1],
                     ElasticSettings(adaptive_depth=True))  # fmt: skip
    with pytest.raises(InvalidInput, match="one pass through all"):
        all_branches(of(adaptive_depth=True), X)
    for wrong, said in (
        ({"branches": 1}, "greater than or equal to 2"),
        ({"branches": 2, "step": 4}, "cannot stand beside step"),
        ({"branches": 2, "width": False}, "is about widths"),
        ({"adaptive_depth": True, "depth": False}, "is about depth"),
        ({"adaptive_depth": True, "form": "graph"}, 'form = "own classes"'),
        ({"adaptive_depth": True, "resolution": (6,)}, "cannot stand beside resolution"),
    ):
        with pytest.raises(InvalidInput, match=said):
            ElasticSettings(**wrong)  # type: ignore[arg-type]
