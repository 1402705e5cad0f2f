from __future__ import annotations

from subnet_search.ranking import RANKERS, bn_scale_ranking, l1_ranking, random_ranking, taylor_ranking
from tests.contracts.ranker import RankerContract


class TestL1(RankerContract):
    ranker = staticmethod(l1_ranking)


class TestBatchNormScale(RankerContract):
    ranker = staticmethod(bn_scale_ranking)


class TestTaylor(RankerContract):
    ranker = staticmethod(taylor_ranking)
    reads_batches = True


class TestRandom(RankerContract):
    ranker = staticmethod(random_ranking)
    follows_weights = False
    finds_dead_units = False


def test_every_ranker_of_the_table_is_under_contract() -> None:
    tested = {kind.ranker for kind in RankerContract.__subclasses__()}
    assert set(RANKERS.values()) == tested
