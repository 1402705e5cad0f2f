"""The section about a dynamic net, from plain records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from reports import per_input
from reports.page import build_page
from reports.series import Average, pareto_view
from reports.view import RunView

GATES: dict[str, Any] = {
    "method": "ds",
    "paths": ["layer1"],
    "largest_macs": 1_000_000,
    "routes": [{"decisions": [0], "macs": 400_000}, {"decisions": [1], "macs": 1_000_000}],
    "points": [
        {
            "mean_macs": 550_000.0,
            "spread_macs": 260_000.0,
            "top1_percent": 91.0,
            "histogram": [0.75, 0.25],
            "mean_latency_ms": 1.5,
            "test": {"top1_percent": 90.5},
        },
        {
            "mean_macs": 700_000.0,
            "spread_macs": 300_000.0,
            "top1_percent": 92.0,
            "histogram": [0.5, 0.5],
            "mean_latency_ms": 2.0,
            "test": {"top1_percent": 91.5},
        },
    ],
    "notes": ["the gate decides nothing"],
}
LAYERS: dict[str, Any] = {
    "method": "lc",
    "largest_macs": 1_000_000,
    "blocks": ["layer1.0", "layer1.1"],
    "points": [
        {
            "mean_macs": 550_000.0,
            "spread_macs": 10.0,
            "top1_percent": 91.0,
            "blocks": {"layer1.0": 0.25, "layer1.1": 1.0},
            "test": {"top1_percent": 90.5},
        }
    ],
}


@pytest.fixture
def run(view: RunView) -> RunView:
    return view


def test_a_run_without_a_dynamic_net_has_no_such_section(run: RunView) -> None:
    assert per_input.section(run, {}) is None


def test_operating_points_stand_in_the_same_plane_with_their_spread(run: RunView) -> None:
    view = pareto_view(replace(run, dynamic=GATES))
    assert view.averages == (Average(550_000.0, 260_000.0, 91.0), Average(700_000.0, 300_000.0, 92.0))
    assert pareto_view(replace(run, dynamic=GATES), "params", "top1_percent").averages == ()


def test_shares_of_routes_are_those_of_the_images(run: RunView) -> None:
    view = per_input.routes_view(replace(run, dynamic=GATES))
    assert view.stacked
    assert [share.percent for share in view.shares] == [(75.0, 50.0), (25.0, 50.0)]
    blocks = per_input.routes_view(replace(run, dynamic=LAYERS))
    assert not blocks.stacked
    assert [(share.name, share.percent) for share in blocks.shares] == [
        ("layer1.0", (25.0,)),
        ("layer1.1", (100.0,)),
    ]


def test_examples_stand_in_a_row_for_each_route_that_has_some(run: RunView) -> None:
    easy, hard = np.full((2, 4, 4, 1), 10, np.uint8), np.full((1, 4, 4, 1), 200, np.uint8)
    none = np.zeros((0, 1, 1, 1), np.uint8)
    examples = {"easiest_0": easy, "hardest_0": hard, "easiest_1": none, "hardest_1": none}
    view = per_input.examples_view(replace(run, dynamic=GATES, examples=examples))
    assert view is not None
    assert view.routes == ("0",)
    row = view.picture[0, :: 4 + per_input.GAP, 0]
    assert row.tolist() == [10, 10, 255, 200]


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [GATES, LAYERS])
def test_the_page_says_what_was_found(run: RunView, dynamic: dict[str, Any]) -> None:
    page, figures = build_page(replace(run, dynamic=dynamic))
    assert 'id="dynamic"' in page
    assert "90.5" in page
    assert "routes.png" in figures
    assert ("the gate decides nothing" in page) == (dynamic is GATES)
