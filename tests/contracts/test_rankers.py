from __future__ import annotations

from subnet_search.ranking import RANKERS, bn_scale_ranking, l1_ranking, random_ranking, taylor_ranking
from tests.contracts.ranker import RankerContract, SeeingRankerContract


class TestL1(SeeingRankerContract):
    ranker = staticmethod(l1_ranking)


class TestBatchNormScale(SeeingRankerContract):
    ranker = staticmethod(bn_scale_ranking)


class TestTaylor(SeeingRankerContract):
    ranker = staticmethod(taylor_ranking)


class TestRandom(RankerContract):
    ranker = staticmethod(random_ranking)


def test_every_ranker_of_the_table_is_under_contract() -> None:
    contracts = [TestL1, TestBatchNormScale, TestTaylor, TestRandom]
    assert set(RANKERS.values()) == {contract.ranker for contract in contracts}
