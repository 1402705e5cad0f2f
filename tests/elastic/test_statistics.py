from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from search_spaces import InvalidInput
from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.extraction import extract
from subnet_search.elastic.statistics import load_statistics, recalibrate, save_statistics
from subnet_search.elastic.supernet import Supernet
from subnet_search.settings import ElasticSettings
from tests.toys import make_toy

BATCHES = [(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(i)), None) for i in range(3)]


@pytest.fixture
def supernet() -> Supernet:
    return make_elastic(make_toy("residual"), BATCHES[0][0], ElasticSettings(step=4)).eval()


def buffers(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: b.clone() for name, b in net.named_buffers()}


def test_statistics_equal_torchs_cumulative_average_on_the_extracted_net(supernet: Supernet) -> None:
    for config in supernet.space.sample(np.random.default_rng(0), 4):
        statistics = recalibrate(supernet, config, BATCHES)
        plain = extract(supernet, config)
        for module in plain.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
                module.train()
        with torch.no_grad():
            for x, _ in BATCHES:
                plain(x)
        state = plain.state_dict()
        assert set(statistics.values) == {n for n in state if n.endswith(("running_mean", "running_var"))}
        for name, value in statistics.values.items():
            torch.testing.assert_close(value, state[name], atol=1e-6, rtol=1e-5)


def test_recalibration_writes_nothing_into_the_supernet(supernet: Supernet) -> None:
    supernet.train()
    before = buffers(supernet)
    recalibrate(supernet, supernet.space.smallest(), BATCHES)
    assert all(torch.equal(b, before[n]) for n, b in supernet.named_buffers())
    assert supernet.training
    assert supernet.active == supernet.space.largest()


def test_training_updates_running_statistics_for_the_largest_subnet_only(supernet: Supernet) -> None:
    supernet.train()
    before = buffers(supernet)
    with supernet.subnet(supernet.space.smallest()):
        supernet(BATCHES[0][0])
    assert all(torch.equal(b, before[n]) for n, b in supernet.named_buffers())
    supernet(BATCHES[0][0])
    assert all(not torch.equal(b, before[n]) for n, b in supernet.named_buffers())


def test_given_statistics_are_used_in_evaluation(supernet: Supernet) -> None:
    config = supernet.space.smallest()
    statistics, x = recalibrate(supernet, config, BATCHES), BATCHES[0][0]
    with supernet.subnet(config):
        without = supernet(x)
    with supernet.subnet(config, statistics):
        with_them = supernet(x)
    assert not torch.allclose(without, with_them)
    torch.testing.assert_close(extract(supernet, config, x, statistics)(x), with_them)


def test_a_subnet_is_calibrated_only_with_statistics_of_its_own(supernet: Supernet) -> None:
    small = supernet.space.smallest()
    assert not extract(supernet, small).calibrated
    assert extract(supernet, small, statistics=recalibrate(supernet, small, BATCHES)).calibrated
    assert extract(supernet, supernet.space.largest()).calibrated


def test_networks_without_batch_norm_need_no_statistics() -> None:
    supernet = make_elastic(make_toy("perceptron"), BATCHES[0][0])
    assert not supernet.uses_batch_norm
    assert extract(supernet, supernet.space.smallest()).calibrated


def test_statistics_of_another_subnet_are_refused(supernet: Supernet) -> None:
    statistics = recalibrate(supernet, supernet.space.smallest(), BATCHES)
    with pytest.raises(InvalidInput, match="call recalibrate for this config"):
        supernet.activate(supernet.space.largest(), statistics)


def test_recalibration_without_batches_is_refused(supernet: Supernet) -> None:
    with pytest.raises(InvalidInput, match="at least one batch"):
        recalibrate(supernet, supernet.space.smallest(), [])


def test_statistics_that_are_not_finite_are_refused(supernet: Supernet) -> None:
    with pytest.raises(InvalidInput, match="are not finite"):
        recalibrate(supernet, supernet.space.smallest(), [torch.full((2, 3, 8, 8), torch.nan)])


def test_statistics_survive_a_file(supernet: Supernet, tmp_path: Path) -> None:
    statistics = recalibrate(supernet, supernet.space.smallest(), BATCHES)
    save_statistics(statistics, tmp_path / "s.safetensors")
    loaded = load_statistics(tmp_path / "s.safetensors")
    assert loaded.config_key == statistics.config_key
    assert all(torch.equal(loaded.values[n], v) for n, v in statistics.values.items())


def test_a_broken_statistics_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.safetensors").write_bytes(b"torn")
    with pytest.raises(InvalidInput, match="delete it and recalibrate"):
        load_statistics(tmp_path / "s.safetensors")


def test_a_batch_with_a_single_value_per_channel_is_refused() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))
    images = BATCHES[0][0]
    supernet = make_elastic(net.eval(), images)
    with pytest.raises(
        InvalidInput, match=r"on a batch of 1: Expected more than 1 value .*give larger batches"
    ):
        recalibrate(supernet, supernet.space.smallest(), [images, images[:1]])
