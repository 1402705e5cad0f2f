"""Arithmetic with polynomials in knobs, against their values."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from subnet_search.elastic.terms import MOST_CASES, Terms, fewest, in_some_case, undominated

BLOCKS = "abcd"


def value(terms: Terms, knobs: dict[str, int]) -> int:
    return sum(c * math.prod(knobs[name] for name in monomial) for monomial, c in terms.items())


def assignments(names: str = BLOCKS) -> list[dict[str, int]]:
    return [
        {"width": 3, **dict(zip(names, kept, strict=True))}
        for kept in itertools.product((0, 1), repeat=len(names))
    ]


@pytest.mark.parametrize("seed", range(8))
def test_what_counts_in_some_cases_counts_once_in_them_and_never_else(seed: int) -> None:
    rng = random.Random(seed)
    cases = tuple(frozenset(rng.sample(BLOCKS, rng.randint(1, 3))) for _ in range(rng.randint(0, 4)))
    terms = in_some_case({("width",): 5, (): 2}, cases)
    for knobs in assignments():
        holds = any(all(knobs[block] for block in case) for case in cases)
        assert value(terms, knobs) == (17 if holds else 0)


def test_of_too_many_cases_all_count() -> None:
    many = tuple(frozenset({f"block{i}"}) for i in range(MOST_CASES + 1))
    assert in_some_case({("width",): 5}, many) == {("width",): 5}


def test_a_case_within_another_adds_nothing() -> None:
    assert fewest([frozenset("ab"), frozenset("b"), frozenset("cb")]) == (frozenset("b"),)
    assert fewest([frozenset("a"), frozenset()]) == (frozenset(),)
    assert fewest([]) == ()


@pytest.mark.parametrize("seed", range(8))
def test_the_largest_is_the_same_without_what_is_dominated(seed: int) -> None:
    rng = random.Random(seed)
    monomials = [(), ("a",), ("a", "b"), ("c", "width"), ("width",)]
    steps = [{m: rng.randint(-2, 4) for m in rng.sample(monomials, rng.randint(1, 4))} for _ in range(30)]
    left = undominated(steps)
    assert 0 < len(left) < len(steps)
    for knobs in assignments():
        assert max(value(s, knobs) for s in left) == max(value(s, knobs) for s in steps)
