from __future__ import annotations

import itertools

import numpy as np
import pytest

from search_spaces import CostTable, InvalidInput, Knob, SearchSpace, SubnetConfig
from subnet_search.searchers import SpaceExhausted
from subnet_search.searchers.controls import Listed, uniform_configs
from subnet_search.searchers.feasible import Feasible

SPACE = SearchSpace(
    (
        Knob("outer", (0, 1), "depth"),
        Knob("outer.width", (1, 2, 3)),
        Knob("inner", (0, 1), "depth"),
        Knob("inner.width", (1, 2, 3, 4)),
        Knob("stem", (1, 2, 3)),
    ),
    {"outer.width": (("outer",),), "inner": (("outer",),), "inner.width": (("outer", "inner"),)},
)
MACS = {("stem",): 2, ("outer", "outer.width", "stem"): 3, ("inner", "inner.width", "outer", "stem"): 4}
COSTS = CostTable(SPACE.names, (1,) * 5, MACS, {(): 1}, {(): 4}, ({(): 4},))


def every_config() -> set[SubnetConfig]:
    rows = itertools.product(*(knob.choices for knob in SPACE.knobs))
    return {SPACE.canonical(dict(zip(SPACE.names, row, strict=True))) for row in rows}


def macs(config: SubnetConfig) -> int:
    return int(COSTS.macs(SPACE.encode([config]))[0])


@pytest.mark.slow
@pytest.mark.parametrize("limit", [2, 5, 9, 14, 30, 1000])
def test_unseen_finds_every_feasible_config_and_then_gives_up(limit: float) -> None:
    feasible = Feasible(SPACE, COSTS, {"macs": limit})
    expected = {config for config in every_config() if macs(config) <= limit}
    rng, seen = np.random.default_rng(0), dict[str, SubnetConfig]()
    for _ in expected:
        config = feasible.unseen(SPACE.smallest(), seen, rng)
        assert feasible.allows(config)
        seen[config.key] = config
    assert set(seen.values()) == expected
    with pytest.raises(SpaceExhausted, match="widen the space or raise the limits"):
        feasible.unseen(SPACE.smallest(), seen, rng)


def test_the_walk_through_the_feasible_set_needs_no_chance() -> None:
    walked = list(Feasible(SPACE, COSTS, {"macs": 14})._all())
    assert len(walked) == len(set(walked))
    assert set(walked) == {config for config in every_config() if macs(config) <= 14}


def test_repair_leaves_feasible_configs_alone_and_mends_the_others() -> None:
    feasible = Feasible(SPACE, COSTS, {"macs": 14})
    for config in every_config():
        repaired = feasible.repair(config)
        assert macs(repaired) <= 14
        assert (repaired == config) == (macs(config) <= 14)


def test_limits_without_costs_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"limits on macs need .* costs="):
        Feasible(SPACE, None, {"macs": 3})


def test_uniform_configs_go_evenly_from_the_largest_feasible_down() -> None:
    widths = SearchSpace((Knob("a", tuple(range(1, 101))),))
    costs = CostTable(("a",), (1,), {("a",): 1}, {(): 1}, {(): 4}, ({(): 4},))
    assert [c["a"] for c in uniform_configs(Feasible(widths), 5)] == [100, 75, 50, 26, 1]
    assert [c["a"] for c in uniform_configs(Feasible(widths, costs, {"macs": 40}), 2)] == [40, 1]
    assert [c["a"] for c in uniform_configs(Feasible(widths), 1)] == [100]


def test_uniform_configs_are_distinct_keep_all_blocks_and_may_be_none() -> None:
    configs = uniform_configs(Feasible(SPACE), 9)
    assert len(set(configs)) == len(configs) > 2
    assert all(config["outer"] == config["inner"] == 1 for config in configs)
    assert uniform_configs(Feasible(SPACE, COSTS, {"macs": 2}), 9) == []


def test_a_list_ends() -> None:
    listed = Listed([SPACE.smallest()])
    assert listed.ask() == SPACE.smallest()
    with pytest.raises(SpaceExhausted):
        listed.ask()
