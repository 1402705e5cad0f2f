from __future__ import annotations

import fnmatch
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from search_spaces import InvalidInput, SubnetConfig, SubnetSearchError
from subnet_search import load_subnets, make_elastic, recalibrate, save_subnets
from subnet_search.elastic import Statistics, Supernet, extract
from subnet_search.settings import ElasticSettings
from tests.small import EXAMPLE, small_net, small_splits, small_supernet


def with_statistics(supernet: Supernet) -> list[tuple[SubnetConfig, Statistics]]:
    space, seen = supernet.space, small_splits().calibration
    configs = (space.largest(), space.uniform(0.5), space.smallest())
    return [(config, recalibrate(supernet, config, seen)) for config in configs]


def test_each_subnet_of_a_file_answers_as_it_did_when_it_was_saved(tmp_path: Path) -> None:
    supernet = small_supernet().eval()
    pairs = with_statistics(supernet)
    save_subnets(tmp_path / "set.safetensors", supernet, pairs)
    found = load_subnets(tmp_path / "set.safetensors", small_supernet(seed=1).eval())
    assert found.configs == tuple(config for config, _ in pairs)
    x = torch.randn(4, 1, 8, 8)
    for config, statistics in pairs:
        assert found.statistics(config).values.keys() == statistics.values.keys()
        net = found.extract(config)
        assert torch.equal(net(x), extract(supernet, config, statistics=statistics)(x))
    assert [path.name for path in tmp_path.iterdir()] == ["set.safetensors"]


def test_the_shared_weights_are_stored_once(tmp_path: Path) -> None:
    supernet = small_supernet()
    pairs = with_statistics(supernet)
    sizes = []
    for count in (1, 3):
        save_subnets(tmp_path / "set.safetensors", supernet, pairs[:count])
        sizes.append((tmp_path / "set.safetensors").stat().st_size)
    added = sum(4 * tensor.numel() for _, found in pairs[1:] for tensor in found.values.values())
    assert sizes[1] - sizes[0] < added + 8000  # names and configs


def test_what_a_file_does_not_hold_or_a_supernet_cannot_take_is_refused(tmp_path: Path) -> None:
    supernet, file = small_supernet(), tmp_path / "set.safetensors"
    save_subnets(file, supernet, with_statistics(supernet)[1:])
    with pytest.raises(InvalidInput, match=r"holds no sub-net \w+; it has "):
        load_subnets(file, supernet).statistics(supernet.space.largest())
    other = make_elastic(small_net(), EXAMPLE, ElasticSettings(min_share=0.5, step=2))
    with pytest.raises(InvalidInput, match="of another space than the supernet's"):
        load_subnets(file, other)
    reduced = small_supernet()
    reduced.model.drop = torch.nn.Linear(2, 2)
    before = {name: tensor.clone() for name, tensor in reduced.model.state_dict().items()}
    with pytest.raises(InvalidInput, match=r"set\.safetensors: the weights do not fit"):
        load_subnets(file, reduced)
    assert all(torch.equal(tensor, before[name]) for name, tensor in reduced.model.state_dict().items())


@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    supernet, file = small_supernet(), tmp_path / "set.safetensors"
    if damage == "other":
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(1)}, file)
    elif damage == "cut":
        save_subnets(file, supernet, with_statistics(supernet))
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InvalidInput, match="holds no sub-nets"):
        load_subnets(file, supernet)


def test_what_makes_no_set_is_refused_and_an_older_file_stays(tmp_path: Path) -> None:
    supernet, file = small_supernet(), tmp_path / "set.safetensors"
    pairs = with_statistics(supernet)
    save_subnets(file, supernet, pairs)
    before = file.read_bytes()
    with pytest.raises(InvalidInput, match="at least one, got none"):
        save_subnets(file, supernet, [])
    with pytest.raises(InvalidInput, match="saved once, got"):
        save_subnets(file, supernet, [pairs[0], pairs[0]])
    with pytest.raises(InvalidInput, match="call recalibrate for each"):
        save_subnets(file, supernet, [(pairs[0][0], pairs[1][1])])
    with pytest.raises(InvalidInput, match="unknown knob"):
        save_subnets(file, supernet, [(SubnetConfig({"stm": 1}), pairs[0][1])])
    with pytest.raises(SubnetSearchError, match="cannot write"):
        save_subnets(tmp_path / "nowhere" / "set.safetensors", supernet, pairs)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["set.safetensors"]


@pytest.mark.parametrize("gone", [r"statistics.*", r"statistics.*running_var"])
def test_a_file_without_all_statistics_is_refused(tmp_path: Path, gone: str) -> None:
    supernet = make_elastic(small_net(), EXAMPLE, ElasticSettings(min_share=0.25, step=2))
    save_subnets(tmp_path / "set.safetensors", supernet, with_statistics(supernet))
    with safe_open(tmp_path / "set.safetensors", framework="pt") as file:
        metadata, names = file.metadata(), list(file.keys())
        kept = {name: file.get_tensor(name) for name in names if not fnmatch.fnmatch(name, gone)}
    save_file(kept, tmp_path / "less.safetensors", metadata=metadata)
    with pytest.raises(InvalidInput, match=r"less.safetensors is damaged: .* needs the statistics"):
        load_subnets(tmp_path / "less.safetensors", supernet)


@pytest.mark.parametrize("told", ["[]", "null", '{"configs": 3, "space": 4}'])
def test_a_file_with_strange_metadata_is_refused(tmp_path: Path, told: str) -> None:
    supernet = make_elastic(small_net(), EXAMPLE, ElasticSettings(min_share=0.25, step=2))
    save_file({"weights.x": torch.zeros(1)}, tmp_path / "odd.safetensors", metadata={"subnets": told})
    with pytest.raises(InvalidInput, match="holds no sub-nets"):
        load_subnets(tmp_path / "odd.safetensors", supernet)


def test_statistics_that_lack_a_norm_are_not_saved(tmp_path: Path) -> None:
    supernet = make_elastic(small_net(), EXAMPLE, ElasticSettings(min_share=0.25, step=2))
    config = supernet.space.smallest()
    with pytest.raises(InvalidInput, match="needs the statistics"):
        save_subnets(tmp_path / "set.safetensors", supernet, [(config, Statistics(config.key, {}))])
    assert not list(tmp_path.iterdir())
