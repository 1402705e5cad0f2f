from __future__ import annotations

import numpy as np
import pytest

from search_spaces import InvalidInput, Knob, SubnetSearchError


def test_a_knob_knows_its_smallest_and_largest() -> None:
    knob = Knob("stem", (8, 16, 32), "width")
    assert (knob.smallest, knob.largest) == (8, 32)


def test_choices_without_order_keep_the_order_given() -> None:
    knob = Knob("operation", (3, 1, 2), "choice")
    assert (knob.choices, knob.smallest, knob.largest) == ((3, 1, 2), 3, 2)


def test_choices_become_plain_integers() -> None:
    knob = Knob("stem", list(np.array([8, 16])), "width")  # type: ignore[arg-type]
    assert knob == Knob("stem", (8, 16), "width")
    assert [type(choice) for choice in knob.choices] == [int, int]


@pytest.mark.parametrize(
    ("choices", "kind", "message"),
    [
        ((), "width", r"'stem' must be ascending and not empty, got \(\)"),
        ((16, 8), "width", r"ascending and not empty, got \(16, 8\)"),
        ((8, 8), "resolution", "ascending"),
        ((0, 8), "width", r"of kind 'width' must be at least 1, got \(0, 8\)"),
        ((0, 32), "resolution", "at least 1"),
        ((-1, 2), "branch", "at least 0"),
        ((1, 2), "depth", r"must be \(0, 1\): a block is skipped or kept, got \(1, 2\)"),
        ((1, 2, 1), "choice", "distinct and not empty"),
        ((), "choice", "distinct and not empty"),
        ((1.0, 2.0), "width", "whole number, got 1.0"),
        ((True,), "width", "whole number, got True"),
        ((np.bool_(True),), "choice", "whole number"),
        ((2**63,), "width", "64 bits"),
        ("12", "width", "tuple of whole numbers, got '12'"),
        (8, "width", "tuple of whole numbers, got 8"),
        ((8,), "widht", "did you mean 'width'"),
    ],
)
def test_choices_that_break_the_rule_of_their_kind_are_refused(
    choices: object, kind: object, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        Knob("stem", choices, kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_knob_without_a_name_is_refused(name: object) -> None:
    with pytest.raises(InvalidInput, match="non-empty text"):
        Knob(name, (1, 2), "width")  # type: ignore[arg-type]


def test_bad_input_is_both_one_of_ours_and_a_value_error() -> None:
    assert issubclass(InvalidInput, SubnetSearchError)
    assert issubclass(InvalidInput, ValueError)
