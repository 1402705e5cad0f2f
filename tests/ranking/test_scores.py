from __future__ import annotations

import pytest
import torch
from torch import nn

from search_spaces import InvalidInput
from subnet_search.ranking.scores import best_first, per_output


def test_best_first_sorts_by_falling_score_and_keeps_ties_in_order() -> None:
    order = best_first({"g": torch.tensor([1.0, 3.0, 1.0, 3.0, 2.0])})["g"]
    assert order.tolist() == [1, 3, 4, 0, 2]


def test_a_sum_per_output_channel_is_that_of_its_filter() -> None:
    for layer in (nn.Conv2d(6, 4, 3), nn.Conv2d(6, 12, 1, groups=6), nn.Linear(6, 5)):
        expected = torch.stack([filter_.sum() for filter_ in layer.weight])
        torch.testing.assert_close(per_output(layer.weight), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_make_no_ranking(value: float) -> None:
    with pytest.raises(
        InvalidInput, match=f"got {value} for unit 1 of conv1; look for NaN or infinite numbers"
    ):
        best_first({"conv0": torch.ones(3), "conv1": torch.tensor([1.0, value, 2.0])})
