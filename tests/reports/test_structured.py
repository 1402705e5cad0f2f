"""The section about branches and sub-paths, from plain records."""

from __future__ import annotations

from dataclasses import replace

from reports import structured
from reports.page import build_page
from reports.view import RunView, Seen
from search_spaces import CostTable, Knob, SearchSpace

SPACE = SearchSpace((Knob("branches", (1, 2), "branch"), Knob("a.1", (0, 1), "depth")))
COSTS = CostTable(
    SPACE.names,
    (1, 1),
    {("branches", "branches"): 100, ("a.1", "branches"): 50},
    {(): 1},
    {(): 4},
    ({(): 4},),
)


def test_every_number_of_branches_and_every_combination_has_a_row(view: RunView) -> None:
    whole, base = SPACE.largest(), SPACE.canonical({"branches": 2, "a.1": 0})
    seen = tuple(
        Seen(config.key, config, "guided", {"top1_percent": top1})
        for config, top1 in ((whole, 91.0), (base, 90.0))
    )
    coverage = {
        "branches": {"count": 2, "row_macs": [150, 250]},
        "sub_paths": [{"knob": "a.1", "mandatory": ["a.0"], "skippable": ["a.1"]}],
        "groups": [], "blocks": [], "fixed": [],
    }  # fmt: skip
    run = replace(view, space=SPACE, costs=COSTS, coverage=coverage, seen=seen, front=(base.key,))
    assert structured.branch_rows(run) == [
        structured.Row("1", 150.0, 150.0, None, on_front=False),
        structured.Row("2", 500.0, 400.0, 91.0, on_front=False),
    ]
    assert structured.path_rows(run) == [
        structured.Row("F", 500.0, None, 91.0, on_front=False),
        structured.Row("T", 400.0, None, 90.0, on_front=True),
    ]
    found = structured.section(run)
    assert found is not None
    assert [table["title"] for table in found["tables"]] == ["Branches", "Sub-paths"]
    page, _ = build_page(replace(view, coverage={**view.coverage, "sub_paths": coverage["sub_paths"]}, space=SPACE,
                                 costs=COSTS, seen=(), chosen=(), front=()))  # fmt: skip
    assert "Only the whole net and the one without any of them were trained" in page
    assert structured.section(view) is None
