from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces import InvalidInput, Knob, SearchSpace, SubnetConfig

SpaceMaker = Callable[[int], SearchSpace]

BLOCK = SearchSpace(
    (Knob("stem", (8, 16, 32), "width"), Knob("block", (0, 1), "depth"), Knob("inner", (4, 8, 12), "width")),
    {"inner": (("block",),)},
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_largest_and_smallest_are_canonical() -> None:
    assert BLOCK.largest() == {"stem": 32, "block": 1, "inner": 12}
    assert BLOCK.smallest() == {"stem": 8, "block": 0, "inner": 12}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_every_way_to_make_a_config_gives_canonical_members(seed: int, random_space: SpaceMaker) -> None:
    space, generator = random_space(seed), rng(seed)
    a, b = space.sample(generator), space.sample(generator)
    made = [a, b, space.mutate(a, generator), space.cross(a, b, generator)]
    for config in [*made, space.smallest(), space.largest(), space.uniform(0.5)]:
        space.check(config)
        assert space.canonical(config) == config


@pytest.mark.parametrize("seed", range(5))
def test_decode_undoes_encode(seed: int, random_space: SpaceMaker) -> None:
    space = random_space(seed)
    configs = space.sample(rng(seed), 20)
    x = space.encode(configs)
    assert (x.dtype, x.shape) == (np.int64, (20, len(space.knobs)))
    assert space.decode(x) == configs
    assert x[0].tolist() == [configs[0][knob.name] for knob in space.knobs]


def test_encode_of_nothing_has_the_right_shape() -> None:
    assert BLOCK.encode([]).shape == (0, 3)
    assert BLOCK.decode(BLOCK.encode([])) == []


def test_encode_and_decode_make_canonical() -> None:
    assert BLOCK.encode([{"inner": 4, "block": 0, "stem": 8}]).tolist() == [[8, 0, 12]]
    assert BLOCK.decode(np.array([[8, 0, 4]])) == [{"stem": 8, "block": 0, "inner": 12}]


def test_sampling_draws_every_knob_uniformly() -> None:
    draws = Counter(BLOCK.sample(rng(), 9_000))
    # skipped blocks: 1/2 over three stems; kept ones: 1/2 over nine pairs
    expected = {config: Fraction(1, 6 if config["block"] == 0 else 18) for config in draws}
    assert len(draws) == BLOCK.size == 12
    assert all(abs(draws[config] / 9_000 - expected[config]) < 0.015 for config in draws)


def test_one_sample_is_the_first_of_many() -> None:
    assert BLOCK.sample(rng(3)) == BLOCK.sample(rng(3), 1)[0]


@pytest.mark.parametrize("seed", range(10))
def test_a_mutation_always_differs(seed: int, random_space: SpaceMaker) -> None:
    space, generator = random_space(seed), rng(seed)
    config = space.sample(generator)
    for _ in range(30):
        config, before = space.mutate(config, generator), config
        assert config != before


def test_mutations_reach_the_whole_space() -> None:
    generator, config, seen = rng(), BLOCK.smallest(), set()
    for _ in range(400):
        seen.add(config := BLOCK.mutate(config, generator))
    assert len(seen) == BLOCK.size


def test_a_mutation_changes_few_knobs() -> None:
    space = SearchSpace(tuple(Knob(f"knob{i}", (1, 2, 3), "width") for i in range(50)))
    config = space.largest()
    changes = Counter(
        sum(mutant[name] != config[name] for name in config)
        for mutant in (space.mutate(config, rng(seed)) for seed in range(100))
    )
    assert set(changes) == {1, 2, 3}


def test_a_space_of_one_config_cannot_mutate() -> None:
    space = SearchSpace((Knob("stem", (8,), "width"),))
    assert space.size == 1
    assert space.mutate(space.largest(), rng()) == space.largest()


@pytest.mark.parametrize("seed", range(10))
def test_active_knobs_of_a_child_come_from_a_parent(seed: int, random_space: SpaceMaker) -> None:
    space, generator = random_space(seed), rng(seed)
    for _ in range(20):
        a, b = space.sample(generator, 2)
        child = space.cross(a, b, generator)
        active = space.active_rows(space.encode([child]))[0]
        assert all(
            child[n] in (a[n], b[n]) for n, is_active in zip(space.names, active, strict=True) if is_active
        )
    assert space.cross(a, a, generator) == a


def test_a_child_takes_the_widths_of_a_block_from_the_parent_that_keeps_it() -> None:
    skipped = BLOCK.canonical({"stem": 8, "block": 0, "inner": 4})
    kept = BLOCK.canonical({"stem": 16, "block": 1, "inner": 4})
    children = {BLOCK.cross(skipped, kept, rng(seed)) for seed in range(40)}
    assert {child["inner"] for child in children if child["block"]} == {4}
    assert len(children) == 4


def test_a_seed_repeats_its_choices() -> None:
    a, b = BLOCK.sample(rng(5), 2)
    assert BLOCK.mutate(a, rng(1)) == BLOCK.mutate(a, rng(1))
    assert BLOCK.cross(a, b, rng(1)) == BLOCK.cross(a, b, rng(1))


@pytest.mark.parametrize(
    ("choices", "share", "expected"),
    [
        ((8, 16, 32), 0.5, 16),
        ((8, 16, 32), 0.01, 8),
        ((8, 16, 32), 1, 32),
        ((8, 16, 32), 0.75, 32),  # 24 is halfway: upward
        ((14, 15, 50), 0.29, 15),  # halfway, although 0.29 * 50 is a little less than 14.5
        ((1, 2, 10), 0.15, 2),
    ],
)
def test_uniform_takes_the_nearest_choice(choices: tuple[int, ...], share: float, expected: int) -> None:
    space = SearchSpace((Knob("stem", choices, "width"), Knob("block", (0, 1), "depth")))
    assert space.uniform(share) == {"stem": expected, "block": 1}


def test_uniform_leaves_other_kinds_at_their_largest() -> None:
    space = SearchSpace((Knob("input", (128, 224), "resolution"), Knob("op", (2, 1), "choice")))
    assert space.uniform(0.1) == {"input": 224, "op": 1}


@pytest.mark.parametrize("share", [0, -0.5, 1.01, float("nan"), True])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(InvalidInput, match="above 0 and at most 1, got"):
        BLOCK.uniform(share)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stam": 8}, "unknown knob 'stam'; did you mean 'stem'"),
        ({"stem": 17}, "'stem' cannot be 17; the nearest of its 3 choices is 16"),
        ({"stem": 16.0}, "cannot be 16.0"),
        ({"block": True}, "cannot be True"),
        ({"inner": None}, "cannot be None; its choices are 4, 8, 12"),
        ({"inner": float("nan")}, "its choices are 4, 8, 12"),
        ({"inner": 10**30}, "nearest of its 3 choices is 12"),
    ],
)
def test_check_names_what_is_wrong_and_what_is_near(change: dict, message: str) -> None:
    config = {**BLOCK.largest(), **change}
    for refuse in (
        BLOCK.check,
        BLOCK.canonical,
        lambda c: BLOCK.encode([c]),
        lambda c: BLOCK.mutate(c, rng()),
    ):
        with pytest.raises(InvalidInput, match=message):
            refuse(config)


def test_check_names_a_missing_knob() -> None:
    with pytest.raises(InvalidInput, match="all 3 knobs of its space, this one lacks 2, first 'stem'"):
        BLOCK.check({"block": 1})


def test_check_accepts_configs_that_are_not_canonical() -> None:
    BLOCK.check(SubnetConfig({"stem": 8, "block": 0, "inner": 4}))


@pytest.mark.parametrize(
    "x", [np.zeros((2, 2), int), np.zeros(3, int), np.ones((1, 3)), np.array([[8, 1, 5]])]
)
def test_rows_that_are_no_configs_are_refused(x: np.ndarray) -> None:
    with pytest.raises(InvalidInput, match=r"encoded configs must be|'inner' cannot be 5"):
        BLOCK.decode(x)


def test_an_empty_space_is_refused() -> None:
    with pytest.raises(InvalidInput, match="at least one knob"):
        SearchSpace(())


def test_equal_names_are_refused() -> None:
    with pytest.raises(InvalidInput, match="'stem' twice"):
        SearchSpace((Knob("stem", (1, 2), "width"), Knob("stem", (1, 3), "width")))


def test_what_is_no_knob_is_refused() -> None:
    with pytest.raises(InvalidInput, match="made of knobs, got 'stem'"):
        SearchSpace(("stem",))  # type: ignore[arg-type]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda space: pickle.loads(pickle.dumps(space))])
def test_a_copied_space_equals_the_original(clone) -> None:
    assert BLOCK.size == 12  # also with its caches filled
    assert clone(BLOCK) == BLOCK
    assert hash(clone(BLOCK)) == hash(BLOCK)
