from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

from search_spaces import InvalidInput
from subnet_search.data import TensorBatches
from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.extraction import extract
from subnet_search.elastic.statistics import recalibrate
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure import top1_percent
from subnet_search.ranking import (
    RANKERS,
    SliceCurves,
    l1_ranking,
    levels_from_json,
    noise_levels,
    random_ranking,
    rank_by,
    slice_curves,
    table_of,
)
from subnet_search.settings import ElasticSettings, RankSettings, TrainSettings
from subnet_search.training import PlainStep, train
from tests.small import EXAMPLE, small_data, small_net, small_splits, small_supernet

BATCHES = list(TensorBatches(*small_data(48, seed=1), 16))
IMAGES = list(TensorBatches(*small_data(40, seed=2), 16))


@pytest.fixture(scope="module")
def trained() -> Supernet:
    supernet = small_supernet()
    train(supernet, small_splits(96), PlainStep(), TrainSettings(epochs=8, lr=0.05, device="cpu"))
    return supernet


def test_a_curve_is_the_accuracy_of_extracted_recalibrated_nets_of_the_reordered_network(
    trained: Supernet,
) -> None:
    rankings = {"l1": l1_ranking(trained, []), "random": random_ranking(trained, [])}
    curves = slice_curves(trained, rankings, BATCHES, IMAGES, (0.5, 0.75))
    assert curves is not None
    assert (curves.shares, curves.images) == ((0.5, 0.75), 40)
    for name, ranking in rankings.items():
        reordered = copy.deepcopy(trained)
        reordered.reorder(ranking)
        for place, share in enumerate(curves.shares):
            config = trained.space.uniform(share)
            assert all(config[block] == 1 for block in trained.blocks)
            net = extract(reordered, config, EXAMPLE, recalibrate(reordered, config, BATCHES))
            assert curves.top1_percent[name][place] == top1_percent(net, IMAGES)
            macs = trained.costs.macs(trained.space.encode([config, trained.space.largest()]))
            assert curves.macs_share[place] == pytest.approx(macs[0] / macs[1])


def test_shares_that_give_the_same_net_or_the_whole_one_count_once() -> None:
    supernet = make_elastic(small_net(), EXAMPLE, ElasticSettings(groups_per_layer=2))
    curves = slice_curves(supernet, {"l1": l1_ranking(supernet, [])}, BATCHES, IMAGES)
    assert curves is not None
    assert len(curves.shares) == len({supernet.space.uniform(share) for share in curves.shares})
    assert supernet.space.largest() not in [supernet.space.uniform(share) for share in curves.shares]


def curves_of(**top1: tuple[float, ...]) -> SliceCurves:
    return SliceCurves((0.25, 0.5), (0.1, 0.3), top1, 100)


def test_the_best_has_the_highest_mean_and_of_equal_ones_the_first_wins() -> None:
    assert curves_of(noise=(50.0, 80.0), l1=(60.0, 71.0)).best == "l1"
    assert curves_of(noise=(50.0, 80.0), l1=(60.0, 70.0), taylor=(65.0, 65.0)).best == "noise"


def test_chance_is_taken_only_where_there_is_nothing_else() -> None:
    assert curves_of(l1=(50.0, 60.0), random=(90.0, 90.0)).best == "l1"
    assert curves_of(random=(90.0, 90.0)).best == "random"


def test_the_table_names_each_ranker_and_the_one_taken() -> None:
    lines = table_of(curves_of(noise=(50.0, 80.0), l1=(60.0, 71.0)), "l1")
    assert "100 images" in lines[0]
    assert lines[1].split() == ["25%", "50%", "mean"]
    assert lines[2].split() == ["noise", "50.00", "80.00", "65.00"]
    assert lines[3].split() == ["l1", "60.00", "71.00", "65.50", "<-", "taken"]


def settings(**values: Any) -> RankSettings:
    return RankSettings(steps=10, **values)


def test_the_ranking_with_the_best_curve_is_taken(trained: Supernet) -> None:
    before = copy.deepcopy(trained.state_dict())
    found = rank_by(settings(), trained, BATCHES, IMAGES)
    assert found.curves is not None
    assert list(found.curves.top1_percent) == ["noise", "l1", "bn_scale", "taylor", "random"]
    assert found.ranker == found.curves.best
    means = {name: sum(top1) for name, top1 in found.curves.top1_percent.items() if name != "random"}
    assert means[found.ranker] == max(means.values())
    if found.ranker in ("l1", "bn_scale", "taylor"):
        expected = RANKERS[found.ranker](trained, BATCHES)
        assert all(torch.equal(found.ranking[name], expected[name]) for name in expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())


@pytest.mark.parametrize("name", ["random", "weight_noise", "l1"])
def test_a_ranking_that_is_named_is_taken_and_compared_all_the_same(trained: Supernet, name: str) -> None:
    found = rank_by(settings(ranker=name), trained, BATCHES, IMAGES)
    assert found.ranker == name
    assert found.curves is not None
    assert {name, "noise", "taylor"} <= set(found.curves.top1_percent)
    assert found.curves.best != "random"


def test_without_curves_only_the_ranking_that_is_named_is_made(trained: Supernet) -> None:
    found = rank_by(settings(ranker="l1", curve=False), trained, BATCHES, [])
    assert (found.ranker, found.curves, found.levels) == ("l1", None, None)
    assert set(found.to_json()) == {"ranker", "order"}


def test_networks_without_batch_norm_are_compared_without_its_scale() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    supernet = make_elastic(net, EXAMPLE, ElasticSettings(step=4))
    found = rank_by(settings(), supernet, BATCHES, IMAGES)
    assert found.curves is not None
    assert list(found.curves.top1_percent) == ["noise", "l1", "taylor", "random"]


def test_a_network_with_one_width_is_ranked_by_noise() -> None:
    supernet = make_elastic(small_net(), EXAMPLE, ElasticSettings(width=False))
    found = rank_by(settings(), supernet, BATCHES, IMAGES)
    assert (found.ranker, found.curves) == ("noise", None)


def test_what_is_stored_comes_back(trained: Supernet) -> None:
    content = json.loads(json.dumps(rank_by(settings(), trained, BATCHES, IMAGES).to_json()))
    levels, again = levels_from_json(content["levels"]), noise_levels(trained, BATCHES, steps=10)
    assert all(torch.equal(levels.units[name], again.units[name]) for name in trained.groups)
    assert (levels.blocks, levels.reward) == (again.blocks, again.reward)
    assert set(content["order"]) == set(trained.groups)
    assert len(content["curve"]["shares"]) == len(content["curve"]["top1_percent"]["l1"])


def test_the_best_needs_its_curves() -> None:
    with pytest.raises(InvalidInput, match=r"curve may be false only where a ranker is named.*got False"):
        RankSettings(curve=False)
    assert not RankSettings(ranker="noise", curve=False).curve
