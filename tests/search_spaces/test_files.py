from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces import (
    CostTable,
    InvalidInput,
    Knob,
    SearchSpace,
    SubnetConfig,
    config_from_json,
    config_to_json,
    costs_from_json,
    costs_to_json,
    space_from_json,
    space_to_json,
)

SpaceMaker = Callable[[int], SearchSpace]
CostMaker = Callable[[SearchSpace, int], CostTable]

SPACE = SearchSpace((Knob("block", (0, 1), "depth"), Knob("stem", (4, 8), "width")), {"stem": (("block",),)})
TERMS = {("block", "stem"): 27, (): 3}
TERMS_OF_STEM = {("stem",): 27}
COSTS = CostTable(SPACE.names, (1, 4), TERMS, TERMS, TERMS, (TERMS, {("stem",): 4}))
WRITTEN = {
    config_from_json: config_to_json(SPACE.largest()),
    space_from_json: space_to_json(SPACE),
    costs_from_json: costs_to_json(COSTS),
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("seed", range(10))
def test_spaces_configs_and_costs_come_back_through_json(
    seed: int, random_space: SpaceMaker, random_costs: CostMaker
) -> None:
    space = random_space(seed)
    costs, config = random_costs(space, seed), space.smallest()
    assert space_from_json(json.loads(json.dumps(space_to_json(space)))) == space
    assert costs_from_json(json.loads(json.dumps(costs_to_json(costs)))) == costs
    assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config


def test_the_files_are_readable() -> None:
    assert space_to_json(SPACE)["inactive_when"] == {"stem": [["block"]]}
    assert costs_to_json(COSTS)["macs"] == [[27, "block", "stem"], [3]]
    assert config_to_json(SubnetConfig({"a": 1}))["values"] == {"a": 1}


@pytest.mark.parametrize("read", WRITTEN)
@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_another_format_is_refused(read: Callable[[object], object], version: object) -> None:
    with pytest.raises(InvalidInput, match=f"must be of format 1, got {version!r}"):
        read({**WRITTEN[read], "format": version})


@pytest.mark.parametrize("read", WRITTEN)
def test_missing_and_unknown_fields_are_refused(read: Callable[[object], object]) -> None:
    for name in set(WRITTEN[read]) - {"format"}:
        with pytest.raises(InvalidInput, match="must have the fields"):
            read({key: value for key, value in WRITTEN[read].items() if key != name})
    with pytest.raises(InvalidInput, match=r"must have the fields .*'more'"):
        read({**WRITTEN[read], "more": 1})


def test_a_key_of_other_values_is_refused() -> None:
    with pytest.raises(InvalidInput, match="the config's key must be"):
        config_from_json({**config_to_json(SPACE.largest()), "values": dict(SPACE.smallest())})


def test_a_monomial_that_stands_twice_is_refused() -> None:
    with pytest.raises(InvalidInput, match="stand once"):
        costs_from_json({**costs_to_json(COSTS), "macs": [[1, "stem"], [2, "stem"]]})


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


@pytest.mark.parametrize("read", WRITTEN)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_still_makes_sense(
    read: Callable[[object], object], data: st.DataObject
) -> None:
    damaged = {"root": copy.deepcopy(WRITTEN[read])}
    *path, last = data.draw(st.sampled_from(places(damaged)[1:]))
    target: Any = damaged
    for key in path:
        target = target[key]
    target[last] = data.draw(json_values)
    with suppress(InvalidInput):
        read(damaged["root"])


def test_costs_at_other_resolutions_are_written_beside_the_others_and_only_where_there_are_some() -> None:
    knobs = ("resolution", "stem")
    low = CostTable(knobs, (1, 4), {("stem",): 3}, TERMS_OF_STEM, TERMS_OF_STEM, (TERMS_OF_STEM,))
    table = CostTable(
        knobs, (1, 4), {("stem",): 5}, TERMS_OF_STEM, TERMS_OF_STEM, (TERMS_OF_STEM,), {24: low}
    )
    written = costs_to_json(table)
    assert written["at_resolution"][0] == {
        "resolution": 24, "macs": [[3, "stem"]], **{name: written[name] for name in ("params", "weight_bytes")},
        "peak_activation_bytes": [[[27, "stem"]]],
    }  # fmt: skip
    assert costs_from_json(json.loads(json.dumps(written))) == table
    assert "at_resolution" not in costs_to_json(low)
    with pytest.raises(InvalidInput, match="a cost table at a resolution must have the fields"):
        costs_from_json({**written, "at_resolution": [{"resolution": 24}]})
    with pytest.raises(InvalidInput, match="must be a list"):
        costs_from_json({**written, "at_resolution": {"24": {}}})
