from __future__ import annotations

from functools import partial

from subnet_search.ranking import (
    RANKERS,
    bn_scale_ranking,
    l1_ranking,
    natural_ranking,
    noise_ranking,
    random_ranking,
    taylor_ranking,
    weight_noise_ranking,
)
from tests.contracts.ranker import ExactRankerContract, RankerContract, SeeingRankerContract


class TestNoise(SeeingRankerContract):
    ranker = staticmethod(partial(noise_ranking, steps=40))


class TestWeightNoise(RankerContract):
    ranker = staticmethod(partial(weight_noise_ranking, steps=40))


class TestL1(ExactRankerContract):
    ranker = staticmethod(l1_ranking)


class TestBatchNormScale(ExactRankerContract):
    ranker = staticmethod(bn_scale_ranking)


class TestTaylor(ExactRankerContract):
    ranker = staticmethod(taylor_ranking)


class TestRandom(RankerContract):
    ranker = staticmethod(random_ranking)


class TestNatural(RankerContract):
    ranker = staticmethod(natural_ranking)


def test_every_ranker_of_the_table_is_under_contract() -> None:
    contracts = [TestNoise, TestWeightNoise, TestL1, TestBatchNormScale, TestTaylor, TestRandom, TestNatural]
    assert set(RANKERS.values()) == {
        getattr(contract.ranker, "func", contract.ranker) for contract in contracts
    }
