from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import numpy as np
import pytest

from search_spaces import InvalidInput, Knob, SearchSpace
from search_spaces.presets import ladders, steps_down

SPACE = SearchSpace(
    (
        Knob("stem", (4, 8, 12, 16)),
        Knob("block", (0, 1), "depth"),
        Knob("block.hidden", (6, 12, 18, 24)),
        Knob("fixed", (10,)),
        Knob("kernel", (3, 7, 5), "choice"),
    ),
    {"block.hidden": (("block",),)},
)
FINE = SearchSpace((Knob("a", tuple(range(1, 13))), Knob("b", tuple(range(4, 37)))))


def test_groups_are_equal_parts_from_the_largest_down_and_blocks_are_kept_or_skipped() -> None:
    assert ladders(SPACE, groups=4) == {
        "stem": (16, 12, 8, 4),
        "block": (1, 0),
        "block.hidden": (24, 18, 12, 6),
        "fixed": (10,),
    }
    assert ladders(SPACE, groups=2)["stem"] == (16, 8)


@pytest.mark.parametrize("groups", [2, 3, 4, 6, 12])
def test_a_fine_space_can_be_cut_into_every_number_of_groups_that_divides_its_layers(groups: int) -> None:
    rungs = ladders(FINE, groups=groups)
    assert rungs["a"] == tuple(range(12, 0, -12 // groups))
    assert rungs["b"] == tuple(width for width in range(36, 0, -36 // groups) if width >= 4)


@pytest.mark.parametrize(("floor", "stem"), [(0.25, (16, 12, 8, 4)), (0.5, (16, 12, 8)), (1, (16,))])
def test_no_rung_lies_below_the_floor(floor: float, stem: tuple[int, ...]) -> None:
    assert ladders(SPACE, groups=4, floor=floor)["stem"] == stem
    assert ladders(SPACE, floor=floor)["stem"] == stem


def test_a_floor_of_a_third_is_one_of_three_groups() -> None:
    assert ladders(FINE, groups=3, floor=1 / 3) == {"a": (12, 8, 4), "b": (36, 24, 12)}


def test_steps_are_the_choices_that_are_multiples_and_the_largest() -> None:
    assert ladders(SPACE, step=8) == {"stem": (16, 8), "block": (1, 0), "block.hidden": (24,), "fixed": (10,)}
    assert ladders(SPACE, step=6, floor=0.5)["block.hidden"] == (24, 18, 12)
    assert ladders(SPACE)["stem"] == (16, 12, 8, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"groups": 5},
            "5 equal groups, but the 16 channels of 'stem' do not; groups=2 or 4 fits every layer",
        ),
        ({"groups": 3}, "the 16 channels of 'stem' do not"),
        (
            {"groups": 8},
            "'stem' offers the widths 4, 8, 12, 16, not 6, 10, 14: convert the network with "
            "ElasticSettings(groups_per_layer=8, min_share=0.125); groups=2 or 4 fits every layer",
        ),
        ({"groups": 16, "floor": 0.5}, "min_share=0.5); groups=2 or 4 fits"),
        ({"groups": 4, "floor": 0.2}, "at least one of its 4 groups, but floor=0.2 is less than 1/4 = 0.25"),
        ({"groups": 4, "floor": 1.5}, "a share from 0 to 1, got 1.5"),
        ({"floor": -0.1}, "a share from 0 to 1, got -0.1"),
        ({"groups": 1}, "at least 2, got 1"),
        ({"groups": 2.5}, "groups per layer must be a whole number, got 2.5"),
        ({"step": 0}, "at least 1, got 0"),
        ({"groups": 4, "step": 8}, "groups= or step=, not both; got groups=4 and step=8"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(message)):
        ladders(SPACE, **arguments)  # type: ignore[arg-type]


def test_a_space_that_ends_above_the_next_group_is_refused_too() -> None:
    with pytest.raises(InvalidInput, match="'a' offers the widths 12, 16, not 8"):
        ladders(SearchSpace((Knob("a", (12, 16)),)), groups=2)
    with pytest.raises(InvalidInput, match="'a' offers the widths 8, 12, 16, not 4"):
        ladders(SearchSpace((Knob("a", (8, 12, 16)),)), groups=4, floor=0.25)
    assert ladders(SearchSpace((Knob("a", (8, 12, 16)),)), groups=4)["a"] == (16, 12, 8)


def test_where_no_number_of_groups_fits_the_step_is_named() -> None:
    with pytest.raises(InvalidInput, match="or give step= instead"):
        ladders(SearchSpace((Knob("a", (3, 7)),)), groups=4)


@pytest.mark.parametrize("seed", range(12))
def test_steps_down_change_one_active_knob_by_one_rung(
    seed: int, random_space: Callable[[int], SearchSpace]
) -> None:
    space, rng = random_space(seed), np.random.default_rng(seed)
    rungs = ladders(space)
    ranks = {name: dict(zip(ladder, itertools.count(), strict=False)) for name, ladder in rungs.items()}
    for config in space.sample(rng, 20):
        active = space.active_rows(space.encode([config]))[0]
        steps = steps_down(space, config, rungs)
        can = [
            knob.name
            for knob, is_active in zip(space.knobs, active, strict=True)
            if is_active and knob.name in rungs and config[knob.name] > rungs[knob.name][-1]
        ]
        assert [name for name, _ in steps] == can
        for name, smaller in steps:
            assert smaller == space.canonical(smaller) != config
            assert ranks[name][smaller[name]] == ranks[name][config[name]] + 1
            assert smaller == space.canonical({**config, name: smaller[name]})


def test_steps_from_between_two_rungs_go_to_the_lower_one_and_the_end_has_none() -> None:
    rungs = ladders(SPACE, groups=2)
    between = {**SPACE.largest(), "stem": 12}
    assert dict(steps_down(SPACE, between, rungs))["stem"]["stem"] == 8
    assert steps_down(SPACE, {**SPACE.largest(), "stem": 4, "block": 0}, rungs) == []
    with pytest.raises(InvalidInput, match="knob 'stem' cannot be 5"):
        steps_down(SPACE, {**SPACE.largest(), "stem": 5}, rungs)


def test_an_absurd_number_of_groups_is_refused_at_once() -> None:
    space = SearchSpace((Knob("a", (4, 8, 16)),))
    with pytest.raises(InvalidInput, match="equal groups"):
        ladders(space, groups=10**15)


def test_a_path_goes_down_in_resolution_too() -> None:
    space = SearchSpace((Knob("resolution", (16, 24, 32), "resolution"), Knob("a", (2, 4))))
    rungs = ladders(space, groups=2)
    assert rungs == {"resolution": (32, 24, 16), "a": (4, 2)}
    knob, smaller = steps_down(space, space.largest(), rungs)[0]
    assert (knob, smaller["resolution"], smaller["a"]) == ("resolution", 24, 4)
