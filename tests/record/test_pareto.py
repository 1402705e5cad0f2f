from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces import InvalidInput, SubnetConfig
from subnet_search.record import (
    Evaluation,
    Images,
    Objective,
    ParetoFront,
    hypervolume,
    non_dominated,
    worst_values,
)

OBJECTIVES = (Objective("macs", "min"), Objective("top1_percent", "max"))
points = st.integers(1, 4).flatmap(
    lambda width: st.lists(
        st.lists(st.integers(0, 4), min_size=width, max_size=width), min_size=1, max_size=9
    )
)


def found(*rows: tuple[float, float]) -> list[Evaluation]:
    return [Evaluation(SubnetConfig({"stem": i}), row) for i, row in enumerate(rows)]


@given(points)
def test_non_dominated_is_the_definition(rows: list[list[int]]) -> None:
    def beats(a: list[int], b: list[int]) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and a != b

    expected = [not any(beats(other, row) for other in rows) for row in rows]
    assert non_dominated(np.array(rows)).tolist() == expected


@given(points)
def test_hypervolume_is_the_number_of_dominated_unit_cells(rows: list[list[int]]) -> None:
    cells = itertools.product(range(4), repeat=len(rows[0]))
    dominated = sum(
        any(all(p <= c for p, c in zip(row, cell, strict=True)) for row in rows) for cell in cells
    )
    reference = np.full(len(rows[0]), 4.0)
    assert hypervolume(np.array(rows), reference) == pytest.approx(dominated)


def test_hypervolume_of_many_points_agrees_with_random_sampling() -> None:
    rng = np.random.default_rng(0)
    losses = rng.random((60, 3)) ** 0.5
    samples = rng.random((20_000, 3))
    share = (losses[:, None] <= samples[None]).all(axis=2).any(axis=0).mean()
    assert hypervolume(losses, np.ones(3)) == pytest.approx(share, abs=0.01)


def test_the_front_follows_the_goals_and_is_sorted_by_the_first_objective() -> None:
    evaluations = found((3, 90), (1, 70), (2, 60), (2, 80))
    assert [e.values for e in ParetoFront.of(OBJECTIVES, evaluations)] == [(1, 70), (2, 80), (3, 90)]


def test_failed_evaluations_and_repeated_configs_are_left_out_of_the_front() -> None:
    config, other = SubnetConfig({"stem": 0}), SubnetConfig({"stem": 1})
    failed = Evaluation(SubnetConfig({"stem": 2}), (), "failed", "no memory")
    front = ParetoFront.of(OBJECTIVES, [Evaluation(c, (1, 70)) for c in (config, config, other)] + [failed])
    assert sorted(e.config["stem"] for e in front) == [0, 1]


def test_an_empty_record_has_an_empty_front_without_volume() -> None:
    front = ParetoFront.of(OBJECTIVES, [])
    assert len(front) == 0
    assert front.hypervolume({"macs": 10, "top1_percent": 0}) == 0


def test_hypervolume_of_a_front_is_the_area_of_its_steps() -> None:
    front = ParetoFront.of(OBJECTIVES, found((1, 70), (3, 90), (20, 95)))
    assert front.hypervolume({"macs": 10, "top1_percent": 50}) == 9 * 20 + 7 * 20


def test_what_was_stopped_is_no_member_and_no_reference_however_good_it_looks() -> None:
    good = found((5, 80))
    config, images = SubnetConfig({"stem": 99}), Images(3, 9, rival=good[0].config.key)
    estimate = Evaluation(config, (1.0, 99.0), source="predicted", spread=(0.0, 9.0), images=images)
    assert estimate.ok
    assert ParetoFront.of(OBJECTIVES, [estimate, *good]).members == tuple(good)
    assert worst_values(OBJECTIVES, [estimate, *good]) == {"macs": 5, "top1_percent": 80}


def test_a_reference_needs_every_objective() -> None:
    with pytest.raises(InvalidInput, match="did you mean 'macs'"):
        ParetoFront.of(OBJECTIVES, []).hypervolume({"mac": 1, "top1_percent": 1})


def test_an_evaluation_with_another_number_of_values_is_refused() -> None:
    with pytest.raises(InvalidInput, match="one value for each"):
        ParetoFront.of(OBJECTIVES, [Evaluation(SubnetConfig({"stem": 1}), (1.0,))])


def test_the_worst_values_follow_the_goals() -> None:
    assert worst_values(OBJECTIVES, found((3, 90), (1, 70))) == {"macs": 3, "top1_percent": 70}
    assert worst_values(OBJECTIVES, []) == {}
