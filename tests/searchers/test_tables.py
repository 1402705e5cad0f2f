from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.folders import data_folder
from benchmarks.tables import TABLES, Table
from search_spaces import InvalidInput
from subnet_search.record import ParetoFront


def table_of(name: str) -> Table:
    try:
        return TABLES[name]()
    except InvalidInput as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("name", "folder", "cost"),
    [
        ("macro-unmerged", "nas-bench-macro", "flops"),
        ("macro-merged", "nas-bench-macro", "flops"),
        pytest.param("201-cifar10-macs", "nas-bench-201", "macs_cifar10 (derived)", marks=pytest.mark.slow),
        pytest.param("201-cifar10-pixel3", "nas-bench-201", "pixel3", marks=pytest.mark.slow),
    ],
)
def test_the_true_front_of_a_table_is_the_published_one(name: str, folder: str, cost: str) -> None:
    table = table_of(name)
    fronts = json.loads((data_folder() / folder / "pareto.json").read_text("utf-8"))
    published = next(front for front in fronts if front["cost"] == cost)
    everything = [table.evaluate(config) for config in table.space.decode(table.rows)]
    assert table.regret(everything) == pytest.approx(0, abs=1e-9)
    front = ParetoFront.of(table.objectives, everything)
    assert sorted({e.values[0] for e in front}) == pytest.approx(sorted(published["front_cost"]))
    assert table.regret([e for e in everything if e.values[0] == table.values[:, 0].max()]) > 99.9


def test_costs_that_are_known_beforehand_are_those_of_the_table() -> None:
    for name in ("macro-merged", "201-cifar100-macs"):
        table = table_of(name)
        exact = table.objectives[0].exact
        assert exact is not None
        np.testing.assert_array_equal(exact(table.rows[::50]), table.values[::50, 0])
