from __future__ import annotations

import pytest

from search_spaces import InvalidInput
from subnet_search.searchers import Budget


def test_a_budget_names_at_least_one_bound() -> None:
    with pytest.raises(InvalidInput, match=r"evaluations=\.\.\. or minutes=\.\.\., got neither"):
        Budget()


@pytest.mark.parametrize("evaluations", [0, -1, 2.5, True])
def test_evaluations_are_a_whole_number_from_one(evaluations: object) -> None:
    with pytest.raises(InvalidInput, match="whole number from 1, got"):
        Budget(evaluations=evaluations)  # type: ignore[arg-type]


@pytest.mark.parametrize("minutes", [0, -1, float("inf"), float("nan"), True])
def test_minutes_are_positive(minutes: float) -> None:
    with pytest.raises(InvalidInput, match="positive number, got"):
        Budget(minutes=minutes)
