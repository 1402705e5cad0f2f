from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import pytest

from search_spaces import InvalidInput, Knob, SearchSpace, SubnetConfig

SpaceMaker = Callable[[int], SearchSpace]


def canonical_by_definition(space: SearchSpace, values: Mapping[str, int]) -> dict[str, int]:
    """A knob inside a skipped block at every place counts as its largest, outer blocks decided first."""
    knobs = {knob.name: knob for knob in space.knobs}

    def value(name: str) -> int:
        places = space.inactive_when.get(name, ((),))
        inactive = all(any(value(block) == 0 for block in place) for place in places)
        return knobs[name].largest if inactive else values[name]

    return {name: value(name) for name in knobs}


def all_values(space: SearchSpace) -> list[dict[str, int]]:
    rows = itertools.product(*(knob.choices for knob in space.knobs))
    return [dict(zip(space.names, row, strict=True)) for row in rows]


@pytest.mark.parametrize("seed", range(25))
def test_canonical_equals_its_definition_for_every_config(seed: int, random_space: SpaceMaker) -> None:
    space = random_space(seed)
    values = all_values(space)
    expected = [canonical_by_definition(space, config) for config in values]
    rows = space.encode(values)
    assert rows.tolist() == [list(config.values()) for config in expected]
    assert space.canonical_rows(rows).tolist() == rows.tolist()
    assert space.canonical(values[seed % len(values)]) == expected[seed % len(values)]


@pytest.mark.parametrize("seed", range(25))
def test_size_counts_the_different_canonical_configs(seed: int, random_space: SpaceMaker) -> None:
    space = random_space(seed)
    assert space.size == len({tuple(row) for row in space.encode(all_values(space)).tolist()})


@pytest.mark.parametrize("seed", range(10))
def test_the_value_of_a_knob_matters_exactly_when_it_is_active(seed: int, random_space: SpaceMaker) -> None:
    space = random_space(seed)
    rows = space.encode(all_values(space))
    active = space.active_rows(rows)
    for column, knob in enumerate(space.knobs):
        if len(knob.choices) > 1:
            changed = rows.copy()
            changed[:, column] = [
                next(c for c in knob.choices if c != value) for value in rows[:, column].tolist()
            ]
            differs = (space.canonical_rows(changed) != rows).any(axis=1)
            assert (differs == active[:, column]).all()


def test_size_is_exact_for_sixty_blocks_with_widths_of_their_own() -> None:
    knobs, conditions = [], {}
    for i in range(60):
        knobs.append(Knob(f"block{i}", (0, 1), "depth"))
        for j in range(3):
            knobs.append(Knob(f"width{i}.{j}", tuple(range(1, 11)), "width"))
            conditions[f"width{i}.{j}"] = ((f"block{i}",),)
    assert SearchSpace(tuple(knobs), conditions).size == 1001**60


def test_size_is_exact_for_a_chain_of_blocks_that_share_widths() -> None:
    length = 60
    knobs = [Knob(f"block{i}", (0, 1), "depth") for i in range(length)]
    knobs += [Knob(f"width{i}", (1, 2, 3), "width") for i in range(length - 1)]
    conditions = {f"width{i}": ((f"block{i}",), (f"block{i + 1}",)) for i in range(length - 1)}
    skipped, kept = 1, 1  # a transfer matrix: the width between two blocks is free unless both are skipped
    for _ in range(length - 1):
        skipped, kept = skipped + 3 * kept, 3 * skipped + 3 * kept
    assert SearchSpace(tuple(knobs), conditions).size == skipped + kept


def test_size_is_exact_for_a_width_of_all_blocks_and_nested_blocks() -> None:
    knobs = [Knob("outer", (0, 1), "depth"), Knob("all", (1, 2, 3), "width")]
    knobs += [Knob(f"inner{i}", (0, 1), "depth") for i in range(40)]
    conditions = {f"inner{i}": (("outer",),) for i in range(40)}
    conditions["all"] = tuple(("outer", f"inner{i}") for i in range(40))
    # outer skipped: one; all inner skipped: one; otherwise the width is free
    assert SearchSpace(tuple(knobs), conditions).size == 1 + 1 + 3 * (2**40 - 1)


def test_a_nested_block_under_a_skipped_block_counts_as_kept() -> None:
    space = SearchSpace(
        (Knob("inner", (0, 1), "depth"), Knob("outer", (0, 1), "depth"), Knob("width", (4, 8), "width")),
        {"inner": (("outer",),), "width": (("outer", "inner"),)},
    )
    canonical = space.canonical({"inner": 0, "outer": 0, "width": 4})
    assert canonical == SubnetConfig({"inner": 1, "outer": 0, "width": 8})


def test_a_place_without_blocks_keeps_its_knob_active() -> None:
    knobs = (Knob("block", (0, 1), "depth"), Knob("width", (4, 8), "width"))
    space = SearchSpace(knobs, {"width": ((), ("block",))})
    assert space == SearchSpace(knobs)
    assert space.canonical({"block": 0, "width": 4})["width"] == 4


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"widht": (("a",),)}, "unknown knob 'widht'; did you mean 'width'"),
        ({"width": (("c",),)}, "'c', which is no depth knob"),
        ({"a": (("width",),)}, "'width', which is no depth knob"),
        ({"width": ()}, r"one tuple of depth knobs per place, got \(\); leave out"),
        ({"width": ("a",)}, r"one tuple of depth knobs per place, got \('a',\)"),
        ({"width": "a"}, "per place, got 'a'"),
        ({"width": 3}, "per place, got 3"),
        ({"width": ((["a"],),)}, "is no depth knob"),
        ({"a": (("b",),), "b": (("a",),)}, "no block can be inside itself, but inactive_when says"),
        ({"a": (("a",),)}, "no block can be inside itself"),
        ([], "must be a mapping"),
    ],
)
def test_conditions_that_make_no_sense_are_refused(conditions, message: str) -> None:
    knobs = (Knob("a", (0, 1), "depth"), Knob("b", (0, 1), "depth"), Knob("width", (4, 8), "width"))
    with pytest.raises(InvalidInput, match=message):
        SearchSpace(knobs, conditions)
