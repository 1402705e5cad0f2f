from __future__ import annotations

import pytest
import torch
from torch import nn

from search_spaces import InvalidInput
from subnet_search.elastic.convert import make_elastic
from subnet_search.ranking import bn_scale_ranking, l1_ranking, rank
from tests.small import EXAMPLE, small_supernet


def test_an_inner_group_is_ordered_by_the_l1_norm_of_its_filters() -> None:
    supernet = small_supernet()
    norms = supernet.model.block1.conv1.weight.detach().abs().sum(dim=(1, 2, 3))
    order = rank(supernet, [], l1_ranking)["block1.conv1"]
    assert order.tolist() == sorted(range(16), key=lambda unit: -norms[unit])


def test_all_layers_that_write_the_stream_have_an_equal_say() -> None:
    supernet = small_supernet()
    writers = ("stem", "block1.conv2", "block2.conv2", "depthwise")
    assert set(supernet.groups["stem"].writers) == set(writers)
    with torch.no_grad():
        supernet.model.block1.conv2.weight *= 1000  # its scale alone must not decide
    norms = [supernet.model.get_submodule(w).weight.detach().abs().flatten(1).sum(1) for w in writers]
    score = sum(norm / norm.mean() for norm in norms)
    assert rank(supernet, [], l1_ranking)["stem"].tolist() == sorted(range(8), key=lambda unit: -score[unit])


def test_batch_norm_scales_add_up_over_the_stream() -> None:
    supernet = small_supernet()
    model = supernet.model
    scales = sum(bn.weight.detach().abs() for bn in (model.bn, model.block1.bn2, model.block2.bn2))
    order = rank(supernet, [], bn_scale_ranking)["stem"]
    assert order.tolist() == sorted(range(8), key=lambda unit: -scales[unit])


def test_a_group_without_batch_norm_is_ordered_by_l1() -> None:
    supernet = small_supernet()
    by_scale, by_norm = (rank(supernet, [], ranker)["head"] for ranker in (bn_scale_ranking, l1_ranking))
    assert torch.equal(by_scale, by_norm)


def test_a_network_without_batch_norm_cannot_be_ranked_by_it() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    with pytest.raises(InvalidInput, match=r'bn_scale needs batch norm.*"taylor" or "l1"'):
        rank(make_elastic(net, EXAMPLE), [], bn_scale_ranking)
