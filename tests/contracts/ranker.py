"""What every ranking method must keep to; a new one inherits this and names itself."""

from __future__ import annotations

import pytest
import torch

from subnet_search.elastic.supernet import Supernet
from subnet_search.ranking import Ranker, Ranking, rank
from tests.small import small_splits, small_supernet

BATCHES = small_splits().calibration
assert BATCHES is not None


class RankerContract:
    ranker: Ranker

    def rank(self, supernet: Supernet) -> Ranking:
        return rank(supernet, BATCHES, type(self).ranker)

    def test_every_group_gets_a_permutation_of_its_units(self) -> None:
        supernet = small_supernet()
        ranking = self.rank(supernet)
        assert ranking.keys() == supernet.groups.keys()
        for name, group in supernet.groups.items():
            assert sorted(ranking[name].tolist()) == list(range(group.units))

    def test_the_same_input_gives_the_same_ranking(self) -> None:
        first, second = self.rank(small_supernet()), self.rank(small_supernet())
        assert all(torch.equal(first[name], second[name]) for name in first)

    @pytest.mark.parametrize("training", [True, False])
    def test_the_supernet_comes_back_as_it_was(self, training: bool) -> None:
        supernet = small_supernet().train(training)
        supernet.activate(supernet.space.largest())
        before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
        self.rank(supernet)
        assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())
        assert supernet.active == supernet.space.largest()
        assert {m.training for m in supernet.modules()} == {training}
        assert all(p.grad is None and p.requires_grad for p in supernet.parameters())

    def test_frozen_weights_can_be_ranked_and_stay_frozen(self) -> None:
        supernet = small_supernet().requires_grad_(False)
        wanted = self.rank(small_supernet())
        found = self.rank(supernet)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert not any(p.requires_grad for p in supernet.parameters())

    def test_reordering_by_the_ranking_keeps_the_function(self) -> None:
        supernet = small_supernet().double().eval()
        x = torch.randn(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        before = supernet(x)
        ranking = self.rank(small_supernet())
        supernet.reorder(ranking)
        torch.testing.assert_close(supernet(x), before, rtol=1e-9, atol=1e-9)


class SeeingRankerContract(RankerContract):
    """Of methods that look at what units do, as all but the control do."""

    def test_units_that_do_nothing_come_last(self) -> None:
        supernet = small_supernet()
        with torch.no_grad():
            for unit in (3, 6):
                supernet.model.block1.conv1.weight[unit] = 0
                supernet.model.block1.bn1.weight[unit] = 0
                supernet.model.block1.bn1.bias[unit] = 0
        assert set(self.rank(supernet)["block1.conv1"][-2:].tolist()) == {3, 6}


class ExactRankerContract(SeeingRankerContract):
    """Of methods in which chance has no part."""

    def test_a_reordered_supernet_ranks_in_natural_order(self) -> None:
        supernet = small_supernet()
        supernet.reorder(self.rank(supernet))
        again = self.rank(supernet)
        assert {name: order.tolist() for name, order in again.items()} == {
            name: list(range(group.units)) for name, group in supernet.groups.items()
        }
