from __future__ import annotations

import numpy as np
import pytest

from search_spaces import CostTable, InvalidInput, Knob, SearchSpace
from search_spaces.presets import branch_space, tied_costs


def test_costs_of_tied_knobs_are_those_of_what_they_stand_for() -> None:
    old = SearchSpace((Knob("a", (4, 8), "width"), Knob("b", (2, 4), "width"), Knob("c", (0, 1), "depth"),
                       Knob("d", (0, 1), "depth"), Knob("e", (0, 1), "depth")))  # fmt: skip
    macs = {("a", "b"): 3, ("a", "c"): 5, ("c", "d"): 7, ("e",): 11, (): 1}
    costs = CostTable(old.names, (4, 1, 1, 1, 1), macs, {("b",): 2}, {(): 4}, ({("a",): 1}, {("d",): 9}))
    new = SearchSpace((Knob("k", (1, 2), "branch"), Knob("c", (0, 1), "depth")))
    found = tied_costs(
        costs, new, {"a": ("k", 1), "b": ("k", 2), "c": ("c", 1), "d": ("c", 1), "e": (None, 1)}
    )
    for k in (1, 2):
        for c in (0, 1):
            wanted = costs.evaluate(np.array([[4 * k, 2 * k, c, c, 1]]))
            got = found.evaluate(new.encode([{"k": k, "c": c}]))
            assert {name: value.tolist() for name, value in got.items()} == {
                name: value.tolist() for name, value in wanted.items()
            }
    with pytest.raises(InvalidInput, match="got none for 'b'"):
        tied_costs(costs, new, {"a": ("k", 1)})


def test_more_branches_than_there_can_be_are_refused_before_they_take_memory() -> None:
    with pytest.raises(InvalidInput, match="at most 1024 branches, got 1000000000"):
        branch_space(10**9)
    assert branch_space(4).uniform(0.5) == {"branches": 2}
