from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.folding import find_folds, folded
from subnet_search.elastic.statistics import recalibrate
from subnet_search.settings import ElasticSettings
from subnet_search.small_models import resnet20
from tests.toys import TOYS, make_toy

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", TOYS)
def test_folding_does_not_change_what_a_subnet_answers(name: str) -> None:
    supernet = make_elastic(make_toy(name).double(), IMAGES[:1], ElasticSettings(step=4)).eval()
    folds = find_folds(supernet.model)
    for config in (*supernet.space.sample(np.random.default_rng(0), 3), supernet.space.largest()):
        statistics = recalibrate(supernet, config, [IMAGES])
        with supernet.subnet(config, statistics), torch.no_grad():
            expected = supernet(IMAGES.clone())
            with folded(folds):
                assert torch.allclose(supernet(IMAGES.clone()), expected, rtol=1e-9, atol=1e-9)
            assert torch.equal(supernet(IMAGES.clone()), expected)


def test_a_residual_network_folds_all_its_norms_and_runs_none_of_them() -> None:
    supernet = make_elastic(resnet20(width=8), torch.zeros(1, 3, 16, 16), ElasticSettings(step=4)).eval()
    folds = find_folds(supernet.model)
    assert sorted(fold.norm_path for fold in folds) == sorted(supernet.batch_norms)
    images, config = torch.randn(4, 3, 16, 16), supernet.space.smallest()
    statistics = recalibrate(supernet, config, [images])
    with supernet.subnet(config, statistics), folded(folds), torch.no_grad():
        folds[0].norm.weight.data.fill_(7.0)  # it has done its work already
        changed = supernet(images)
        folds[0].norm.weight.data.fill_(1.0)
        assert torch.equal(changed, supernet(images))


class Shared(nn.Module):
    """What one convolution gives is read twice; another convolution stands in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.read_twice, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.called_twice, self.first, self.second = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.read_twice(x)
        x = self.norm(x) + x
        x = self.first(self.called_twice(x)).relu()
        return self.head(self.second(self.called_twice(x)).relu().mean((2, 3)))


def test_a_convolution_that_others_read_or_that_is_called_again_keeps_its_norm() -> None:
    supernet = make_elastic(Shared(), torch.zeros(1, 3, 8, 8), ElasticSettings(step=4))
    assert find_folds(supernet.model) == []


def test_norms_of_skipped_blocks_stay_and_an_error_unfolds() -> None:
    supernet = make_elastic(resnet20(width=8), torch.zeros(1, 3, 16, 16), ElasticSettings(step=4)).eval()
    folds, config = find_folds(supernet.model), supernet.space.smallest()
    assert any(config[block] == 0 for block in supernet.blocks)
    statistics = recalibrate(supernet, config, [torch.randn(4, 3, 16, 16)])
    with supernet.subnet(config, statistics):
        with contextlib.suppress(KeyError), folded(folds):
            ran = {fold.norm_path for fold in folds if fold.norm.folded}
            raise KeyError
        assert ran == {name.removesuffix(".running_mean") for name in statistics.values if "mean" in name}
        assert not any(fold.norm.folded or fold.conv.folded for fold in folds)
