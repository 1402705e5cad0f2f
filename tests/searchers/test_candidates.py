from __future__ import annotations

import itertools

import numpy as np

from search_spaces import CostTable, Knob, SearchSpace
from subnet_search.searchers.candidates import Candidates, distinct
from subnet_search.searchers.feasible import Feasible

SPACE = SearchSpace(
    (
        Knob("stem", (8, 16, 24, 32)),
        Knob("block", (0, 1), "depth"),
        Knob("block.hidden", (8, 16, 24, 32)),
        Knob("op", (5, 2, 9), "choice"),
    ),
    {"block.hidden": (("block",),)},
)
MACS = {("stem",): 3, ("block", "block.hidden", "stem"): 2}
COSTS = CostTable(SPACE.names, (8, 1, 8, 1), MACS, {(): 1}, {(): 4}, ({(): 4},))
WIDE = SearchSpace(tuple(Knob(f"w{i}", tuple(range(8, 72, 8))) for i in range(40)))
WIDE_MACS = dict.fromkeys(itertools.pairwise(WIDE.names), 1)
WIDE_COSTS = CostTable(WIDE.names, (8,) * 40, WIDE_MACS, {(): 1}, {(): 4}, ({(): 4},))


def test_a_small_space_is_listed_whole_within_its_limits() -> None:
    rows = Candidates(Feasible(SPACE)).everything
    assert rows is not None
    assert len(rows) == SPACE.size == len({row.tobytes() for row in rows})
    limited = Candidates(Feasible(SPACE, COSTS, {"macs": 14})).everything
    assert limited is not None
    assert {row.tobytes() for row in limited} == {
        row.tobytes() for row in rows if COSTS.macs(row[None])[0] <= 14
    }
    assert Candidates(Feasible(WIDE)).everything is None


def test_listed_rows_are_found_again() -> None:
    candidates = Candidates(Feasible(SPACE))
    rows = candidates.everything
    assert rows is not None
    marks = candidates.listed({rows[3].tobytes(), rows[7].tobytes(), b"another"})
    assert np.flatnonzero(marks).tolist() == [3, 7]


def test_random_candidates_are_canonical_feasible_and_of_all_costs() -> None:
    limit = float(0.3 * WIDE_COSTS.macs(WIDE.encode([WIDE.largest()]))[0])
    candidates = Candidates(Feasible(WIDE, WIDE_COSTS, {"macs": limit}))
    rows = candidates.random(1_000, np.random.default_rng(0))
    macs = WIDE_COSTS.macs(rows)
    assert len(rows) > 900
    assert macs.max() <= limit
    counts, _ = np.histogram(macs, 6, (0, limit))
    assert (counts > 40).all()
    uniform = WIDE_COSTS.macs(WIDE.encode(WIDE.sample(np.random.default_rng(0), 1_000)))
    assert (uniform <= limit).mean() < 0.6  # independent knobs would leave the small ones out
    assert uniform.min() > 0.15 * uniform.max()


def test_children_resemble_their_parents_and_are_feasible() -> None:
    limit = float(0.5 * WIDE_COSTS.macs(WIDE.encode([WIDE.largest()]))[0])
    candidates = Candidates(Feasible(WIDE, WIDE_COSTS, {"macs": limit}))
    parents = candidates.random(2, np.random.default_rng(0))[1:3]
    children = candidates.children(parents, 500, np.random.default_rng(1))
    own = np.stack([(children != parent).sum(axis=1) for parent in parents])
    from_one = (children[:, None] == parents).any(axis=1).sum(axis=1)
    assert WIDE_COSTS.macs(children).max() <= limit
    assert from_one.min() >= 40 - 10
    assert np.median(own.min(axis=0)) < 12
    assert WIDE.decode(children)  # members of the space


def test_every_other_choice_can_come_of_a_change() -> None:
    space = SearchSpace((Knob("a", (5, 2, 9, 7), "choice"), Knob("b", (1, 3, 4))))
    candidates = Candidates(Feasible(space))
    children = candidates.children(space.encode([{"a": 2, "b": 3}]), 400, np.random.default_rng(0))
    assert {tuple(row) for row in children.tolist()} >= {(a, 3) for a in (5, 9, 7)} | {(2, b) for b in (1, 4)}


def test_the_spread_begins_with_the_ends_and_covers_costs_evenly() -> None:
    candidates = Candidates(Feasible(WIDE))
    rows = candidates.random(2_000, np.random.default_rng(0))
    cost = WIDE_COSTS.macs(rows).astype(float)
    picked = candidates.spread(rows, cost, 9, np.random.default_rng(1))
    assert picked[0] == WIDE.smallest()
    assert picked[1] == WIDE.largest()
    found = np.sort(WIDE_COSTS.macs(WIDE.encode(picked)))
    assert np.diff(found).max() < 1.5 * np.diff(found).mean()
    assert len(set(picked)) == 9


def test_distinct_keeps_the_first_of_equal_rows_in_order() -> None:
    rows = np.array([[3, 1], [2, 2], [3, 1], [1, 3], [2, 2]])
    assert distinct(rows).tolist() == [[3, 1], [2, 2], [1, 3]]
