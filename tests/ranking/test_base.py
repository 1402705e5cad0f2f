from __future__ import annotations

from functools import partial

import pytest
import torch

from search_spaces import SubnetSearchError
from subnet_search.ranking import random_ranking, rank
from tests.small import small_supernet


def test_a_ranker_that_leaves_a_unit_out_is_caught() -> None:
    def broken(supernet: object, batches: object) -> dict[str, torch.Tensor]:
        return {"stem": torch.zeros(8, dtype=torch.int64)}

    with pytest.raises(SubnetSearchError, match=r"permutation of the 8 units of group 'stem', got tensor"):
        rank(small_supernet(), [], broken)


def test_a_ranker_that_leaves_a_group_out_is_caught() -> None:
    with pytest.raises(SubnetSearchError, match=r"got None; mend the ranker"):
        rank(small_supernet(), [], lambda supernet, batches: {})


def test_the_random_control_goes_by_its_seed() -> None:
    supernet = small_supernet()
    first, second, other = (rank(supernet, [], partial(random_ranking, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first["stem"], second["stem"])
    assert any(not torch.equal(first[name], other[name]) for name in first)
