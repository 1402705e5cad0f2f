"""Orders after fine-tuning against the definitions of domination and of Kendall's tau-b."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from subnet_search.record import Objective, agreement, rerank
from subnet_search.record.reranking import in_words

OBJECTIVES = (Objective("top1_percent", "max"), Objective("macs", "min"), Objective("latency_ms", "min"))
BEFORE = {"a": {"top1_percent": 70.0}, "b": {"top1_percent": 80.0}, "c": {"top1_percent": 90.0}}


def after(**accuracies_and_macs: tuple[float, float]) -> dict[str, dict[str, float]]:
    return {key: {"top1_percent": t, "macs": m} for key, (t, m) in accuracies_and_macs.items()}


def tau_b(before: list[float], after: list[float]) -> float:
    """By the definition: agreeing minus disagreeing pairs, over the geometric mean of pairs not tied."""
    pairs = list(itertools.combinations(range(len(before)), 2))
    x = [np.sign(before[i] - before[j]) for i, j in pairs]
    y = [np.sign(after[i] - after[j]) for i, j in pairs]
    return float(np.dot(x, y)) / math.sqrt(np.count_nonzero(x) * np.count_nonzero(y))


def test_the_best_after_tuning_comes_first_with_its_places() -> None:
    order = rerank(OBJECTIVES, BEFORE, after(a=(93, 1), b=(91, 2), c=(92, 3)))
    assert [(one.key, one.place_before, one.place) for one in order] == [
        ("a", 3, 1),
        ("c", 1, 2),
        ("b", 2, 3),
    ]
    assert [(one.before, one.after) for one in order] == [(70, 93), (90, 92), (80, 91)]


def test_a_dearer_subnet_that_is_no_better_any_more_is_beaten() -> None:
    order = rerank(OBJECTIVES, BEFORE, after(a=(93, 1), b=(93, 2), c=(94, 3)))
    assert {one.key: one.beaten_by for one in order} == {"a": (), "b": ("a",), "c": ()}
    assert [(one.key, one.place) for one in order] == [("c", 1), ("a", 2), ("b", 2)]


def test_equal_subnets_do_not_beat_each_other() -> None:
    order = rerank(OBJECTIVES, BEFORE, after(a=(93, 1), b=(93, 1), c=(92, 1)))
    assert {one.key: one.beaten_by for one in order} == {"a": (), "b": (), "c": ("a", "b")}


def test_an_objective_that_one_subnet_has_no_value_of_is_left_out() -> None:
    values = after(a=(93, 1), b=(92, 2), c=(94, 3))
    values["b"]["latency_ms"] = 0.1
    assert {o.key: o.beaten_by for o in rerank(OBJECTIVES, BEFORE, values)}["b"] == ("a",)
    values["a"]["latency_ms"] = values["c"]["latency_ms"] = 5.0
    assert {o.key: o.beaten_by for o in rerank(OBJECTIVES, BEFORE, values)}["b"] == ()


def test_the_list_is_told_in_words() -> None:
    lines = in_words(rerank(OBJECTIVES, BEFORE, after(a=(93, 1), b=(91, 2), c=(94, 3))))
    assert lines == [
        "by accuracy after fine-tuning (search-validation):",
        "1. c: 94.00 %",
        "2. a: 93.00 %, was 3.",
        "3. b: 91.00 %, was 2.; no better than a in anything",
    ]
    assert in_words(rerank(OBJECTIVES, BEFORE, after(a=(93, 1)))) == []


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [3, 1000])
def test_tau_is_that_of_the_definition(seed: int, levels: int) -> None:
    first, second = np.random.default_rng(seed).integers(0, levels, (2, 9)).tolist()
    found = agreement(first, second)
    assert (found.count, found.tau) == (9, pytest.approx(tau_b(first, second)))


@pytest.mark.parametrize(
    ("first", "second"),
    [([1, 2, 3, 4], [1, 2, 3, 4]), ([1, 2, 3, 4, 5], [2, 1, 3, 5, 4]), ([1, 1, 2, 3, 4], [2, 2, 1, 3, 3])],
)
def test_the_p_value_is_the_share_of_all_orders_that_agree_as_much(
    first: list[float], second: list[float]
) -> None:
    found = agreement(first, second)
    taus = [abs(tau_b(first, list(order))) for order in itertools.permutations(second)]
    assert found.p_value == pytest.approx(np.mean([tau >= abs(found.tau or 0) - 1e-12 for tau in taus]))


def test_the_p_value_of_many_is_scipys() -> None:
    first = [float(n) for n in range(12)]
    found = agreement(first, first[::-1])
    assert found.tau == pytest.approx(-1)
    assert found.p_value == pytest.approx(2 / math.factorial(12))


@pytest.mark.parametrize(
    ("first", "second"), [([], []), ([1, 2, 3], [1, 2, 3]), ([5, 5, 5, 5], [1, 2, 3, 4])]
)
def test_too_few_or_equal_numbers_say_nothing(first: list[float], second: list[float]) -> None:
    found = agreement(first, second)
    assert (found.count, found.tau, found.p_value) == (len(first), None, None)
