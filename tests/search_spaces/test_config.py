from __future__ import annotations

import copy
import hashlib
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces import InvalidInput, SubnetConfig

values = st.dictionaries(st.text(), st.integers(-(2**63), 2**63 - 1))


@given(values)
def test_a_config_is_what_it_was_made_of(given_values: dict[str, int]) -> None:
    config = SubnetConfig(given_values)
    assert dict(config) == json.loads(json.dumps(dict(config))) == given_values
    assert config == given_values


@given(values, st.randoms())
def test_order_changes_neither_equality_nor_hash_nor_key(given_values: dict[str, int], random) -> None:
    items = list(given_values.items())
    random.shuffle(items)
    a, b = SubnetConfig(given_values), SubnetConfig(dict(items))
    assert (a, hash(a), a.key) == (b, hash(b), b.key)


def test_the_key_is_the_start_of_the_sha256_of_sorted_compact_json() -> None:
    digest = hashlib.sha256(b'{"a":1,"b":2}').hexdigest()
    assert SubnetConfig({"b": 2, "a": 1}).key == digest[:12]


def test_configs_with_other_values_differ() -> None:
    a, b = SubnetConfig({"a": 1}), SubnetConfig({"a": 2})
    assert a != b
    assert a.key != b.key


def test_a_config_cannot_be_changed() -> None:
    source = {"a": 1}
    config = SubnetConfig(source)
    source["a"] = 2
    with pytest.raises(TypeError):
        config["a"] = 3  # type: ignore[index]
    with pytest.raises(AttributeError):
        config.other = 3  # type: ignore[attr-defined]
    assert config["a"] == 1


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_a_copied_config_equals_the_original(clone) -> None:
    config = SubnetConfig({"a": 1, "b": 2})
    assert clone(config) == config
    assert clone(config).key == config.key


def test_values_become_plain_integers() -> None:
    assert type(SubnetConfig({"a": np.int64(3)})["a"]) is int


@pytest.mark.parametrize("value", [1.0, True, "1", None, 2**63])
def test_a_value_that_is_no_whole_number_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput, match="the value of knob 'a' must"):
        SubnetConfig({"a": value})  # type: ignore[dict-item]


@pytest.mark.parametrize("data", [None, [("a", 1)], {1: 1}])
def test_what_is_no_map_from_text_is_refused(data: object) -> None:
    with pytest.raises(InvalidInput, match="got"):
        SubnetConfig(data)  # type: ignore[arg-type]


def test_the_repr_of_a_large_config_stays_short() -> None:
    config = SubnetConfig({f"layer{i}": i for i in range(100)})
    assert len(repr(config)) < 140
    assert config.key in repr(config)
