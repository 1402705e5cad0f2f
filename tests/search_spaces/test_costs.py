from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from search_spaces import COST_NAMES, CostTable, InvalidInput, SearchSpace
from search_spaces.costs import CHUNK_ROWS

SpaceMaker = Callable[[int], SearchSpace]
CostMaker = Callable[[SearchSpace, int], CostTable]


def value_by_definition(table: CostTable, terms: Mapping[tuple[str, ...], int], row: list[int]) -> int:
    units = {n: value // d for n, value, d in zip(table.knobs, row, table.divisors, strict=True)}
    return sum(c * math.prod(units[name] for name in monomial) for monomial, c in terms.items())


def by_definition(table: CostTable, row: list[int]) -> dict[str, int]:
    if table.at_resolution:
        table = table.at_resolution.get(row[table.knobs.index("resolution")], table)
    single = {
        name: value_by_definition(table, getattr(table, f"{name}_terms"), row) for name in COST_NAMES[:3]
    }
    peaks = [value_by_definition(table, step, row) for step in table.peak_activation_bytes_terms]
    return {**single, "peak_activation_bytes": max(peaks)}


def single_knob(**terms: Mapping[tuple[str, ...], int]) -> CostTable:
    given = {"macs_terms": {}, "params_terms": {}, "weight_bytes_terms": {}, **terms}
    return CostTable(("a", "b"), (1, 1), peak_activation_bytes_terms=(), **given)


@pytest.mark.parametrize("seed", range(20))
def test_costs_equal_their_polynomials(seed: int, random_space: SpaceMaker, random_costs: CostMaker) -> None:
    space = random_space(seed)
    table = random_costs(space, seed)
    x = space.encode(space.sample(np.random.default_rng(seed), 20))
    costs = table.evaluate(x)
    assert [
        dict(zip(costs, row, strict=True)) for row in np.stack(list(costs.values()), axis=1).tolist()
    ] == [by_definition(table, row) for row in x.tolist()]
    for name in COST_NAMES:
        alone = getattr(table, name)(x)
        assert alone.dtype == np.int64
        assert alone.tolist() == costs[name].tolist()


@pytest.mark.parametrize(
    "num_configs", [0, 1, CHUNK_ROWS - 1, CHUNK_ROWS, CHUNK_ROWS + 1, 2 * CHUNK_ROWS + 3]
)
def test_the_number_of_configs_does_not_matter(num_configs: int) -> None:
    table = single_knob(macs_terms={("a", "a", "b"): 3, ("b",): 2, (): 7}, params_terms={("a", "b"): 1})
    x = np.random.default_rng(0).integers(0, 100, size=(num_configs, 2))
    a, b = x.T
    assert table.macs(x).tolist() == (3 * a * a * b + 2 * b + 7).tolist()
    assert table.params(x).tolist() == (a * b).tolist()


def test_a_table_without_terms_costs_nothing() -> None:
    table = single_knob()
    assert table.evaluate(np.ones((2, 2), dtype=int))["peak_activation_bytes"].tolist() == [0, 0]
    assert table.macs(np.ones((2, 2), dtype=int)).tolist() == [0, 0]


def test_high_powers_and_shared_products_are_right() -> None:
    powers = {("a",) * n: n + 1 for n in range(6)} | {("a",) * 3 + ("b",) * 4: 1, ("a", "b", "b"): 5}
    table = single_knob(macs_terms=powers)
    a, b = 3, 2
    expected = sum((n + 1) * a**n for n in range(6)) + a**3 * b**4 + 5 * a * b * b
    assert table.macs(np.array([[a, b]])).tolist() == [expected]


def test_values_are_exact_up_to_the_last_integer_that_float64_holds() -> None:
    table = single_knob(macs_terms={("a",): 1, (): 1})
    assert table.macs(np.array([[2**53 - 2, 1]])).tolist() == [2**53 - 1]
    with pytest.raises(InvalidInput, match=r"below 2\*\*53 to be exact"):
        table.macs(np.array([[2**53 - 1, 1]]))


def test_terms_that_cancel_do_not_hide_an_inexact_value() -> None:
    table = single_knob(macs_terms={("a",): 2**40, ("b",): -(2**40)})
    assert table.macs(np.array([[5, 3]])).tolist() == [2**41]
    with pytest.raises(InvalidInput, match="exact"):
        table.macs(np.array([[2**13, 2**13]]))


def test_costs_too_large_for_any_float_are_refused() -> None:
    table = single_knob(macs_terms={("a",) * 60: 1, ("a",) * 59 + ("b",): -1})
    with pytest.raises(InvalidInput, match="exact"), np.errstate(all="ignore"):
        table.macs(np.array([[2**40, 2**40]]))


def test_equal_monomials_in_another_order_add_up() -> None:
    table = single_knob(macs_terms={("b", "a"): 1, ("a", "b"): 2, ("a",): 0})
    assert table.macs_terms == {("a", "b"): 3}


def test_asking_for_one_cost_twice_gives_it_once() -> None:
    table = single_knob(macs_terms={("a",): 1})
    assert list(table.evaluate(np.ones((1, 2), dtype=int), ["macs", "macs"])) == ["macs"]


def test_an_unknown_cost_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidInput, match="got 'mac'; did you mean 'macs'"):
        single_knob().evaluate(np.ones((1, 2), dtype=int), ["mac"])


@pytest.mark.parametrize("x", [np.ones((1, 3), int), np.ones(2, int), np.ones((1, 2))])
def test_rows_of_another_space_are_refused(x: np.ndarray) -> None:
    with pytest.raises(InvalidInput, match=r"integers \[num_configs, 2\], got"):
        single_knob().macs(x)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({("a", "c"): 1}, "unknown knob 'c'"),
        ({("a",): 1.5}, "coefficient of macs must be a whole number, got 1.5"),
        ({"a": 1}, "must be a tuple of knob names, got 'a'"),
        ([("a",)], "must map monomials to coefficients"),
    ],
)
def test_terms_that_are_no_polynomial_are_refused(terms, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        single_knob(macs_terms=terms)


@pytest.mark.parametrize(
    ("knobs", "divisors", "message"),
    [
        ((), (), "at least one"),
        (("a", "a"), (1, 1), "different"),
        ((["a"],), (1,), "must be names"),
        (("a", "b"), (1,), "2 knobs needs as many divisors, got 1"),
        (("a",), (0,), "at least 1, got 0"),
        (("a",), (1.0,), "whole number"),
    ],
)
def test_knobs_and_divisors_that_do_not_fit_are_refused(knobs, divisors, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        CostTable(knobs, divisors, {}, {}, {}, ())


def test_a_copied_table_equals_the_original() -> None:
    table = single_knob(macs_terms={("a", "b"): 2})
    table.macs(np.ones((1, 2), dtype=int))
    assert copy.deepcopy(table) == table
    assert hash(copy.deepcopy(table)) == hash(table)


def test_each_resolution_has_costs_of_its_own_whatever_the_order_of_the_configs() -> None:
    knobs, nothing = ("resolution", "a"), {}
    low = CostTable(knobs, (1, 1), {("a",): 3}, {("a",): 1}, nothing, ({("a",): 2}, {(): 5}))
    table = CostTable(knobs, (1, 1), {("a",): 7}, {("a",): 1}, nothing, ({("a",): 4},), {24: low})
    x = np.array([[24, 1], [32, 2], [24, 4], [32, 8]])
    assert table.macs(x).tolist() == [3, 14, 12, 56]
    assert table.params(x).tolist() == [1, 2, 4, 8]
    assert table.peak_activation_bytes(x).tolist() == [5, 8, 8, 32]
    many = np.tile(x, (CHUNK_ROWS, 1))
    assert table.macs(many).tolist() == [3, 14, 12, 56] * CHUNK_ROWS
    assert table != low
    assert table.macs(x[:0]).tolist() == []


def test_costs_at_a_resolution_are_over_the_same_knobs() -> None:
    with pytest.raises(InvalidInput, match="need the knob 'resolution'"):
        CostTable(("a",), (1,), {}, {}, {}, (), {24: CostTable(("a",), (1,), {}, {}, {}, ())})
    knobs = ("resolution", "a")
    other = CostTable(knobs, (1, 2), {}, {}, {}, ())
    with pytest.raises(InvalidInput, match="the costs at resolution 24 must be over the same knobs"):
        CostTable(knobs, (1, 1), {}, {}, {}, (), {24: other})
    nested = CostTable(knobs, (1, 2), {}, {}, {}, (), {24: other})
    with pytest.raises(InvalidInput, match="and of that one resolution"):
        CostTable(knobs, (1, 2), {}, {}, {}, (), {24: nested})
