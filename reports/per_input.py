"""The section of the page about a dynamic net: its operating points, what takes which route, and examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from reports.figures import draw_examples, draw_routes
from reports.sections import Figures, Section, drawn
from reports.series import Average, averages
from reports.units import NO_BREAK, text
from reports.view import RunView

GAP = 2  # pixels between example images


class RouteShare(NamedTuple):
    """What part of the images takes a route, or runs a block, at one operating point."""

    name: str
    percent: tuple[float, ...]  # by operating point


class RoutesView(NamedTuple):
    """All that the figure of routes shows."""

    points: tuple[str, ...]  # how an operating point is called: its mean cost
    shares: tuple[RouteShare, ...]
    stacked: bool  # routes of one image exclude each other, blocks do not


class Examples(NamedTuple):
    """Images of each route in one picture: a row for each route, its easiest left and its hardest right."""

    picture: np.ndarray  # uint8 [height, width, 3]
    routes: tuple[str, ...]
    rows: tuple[float, ...]  # where the middle of each row stands, in pixels


def section(run: RunView, figures: Figures) -> Section | None:
    """The section, or None where the run has no dynamic net."""
    if not run.dynamic.get("points"):
        return None
    view = routes_view(run)
    gates = run.dynamic.get("method") == "ds"
    what = "routes" if gates else "blocks"
    sentence = _sentence(run)
    found = drawn(draw_routes(view), "routes", f"Share of the images by {what}. {sentence}", figures)
    examples = examples_view(run) if gates else None
    shown: Section = {}
    if examples is not None:
        told = "Images of search-validation at the middle operating point, a row for each route."
        shown = drawn(draw_examples(examples), "examples", told, figures)
    return {
        **found,
        "sentence": sentence,
        "notes": list(run.dynamic.get("notes", ())),
        "caption": f"Share of the search-validation images that {'take each route' if gates else 'run each block'}, "
        "at each operating point.",
        "rows": [
            _row(run, average, point) for average, point in zip(averages(run), _points(run), strict=True)
        ],
        "examples": shown,
        "examples_caption": "Search-validation images at the middle operating point: of each route those that the "
        "first gate takes for the easiest (left) and for the hardest (right).",
    }


def routes_view(run: RunView) -> RoutesView:
    """What part of the images takes each route (or runs each block), point by point."""
    points = _points(run)
    names = tuple(_percent(point["mean_macs"] / run.dynamic["largest_macs"]) for point in points)
    if run.dynamic.get("method") == "ds":
        whole = run.dynamic["largest_macs"]
        routes = [
            (f"{'/'.join(map(str, route['decisions']))}: {_percent(route['macs'] / whole)}", i)
            for i, route in enumerate(run.dynamic["routes"])
        ]
        shares = tuple(
            RouteShare(name, tuple(100 * point["histogram"][i] for point in points)) for name, i in routes
        )
        return RoutesView(names, shares, stacked=True)
    shares = tuple(
        RouteShare(path, tuple(100 * point["blocks"][path] for point in points))
        for path in run.dynamic["blocks"]
    )
    return RoutesView(names, shares, stacked=False)


def examples_view(run: RunView) -> Examples | None:
    """The example images in one picture; None where there are none."""
    rows, routes = [], []
    for i, route in enumerate(run.dynamic.get("routes", ())):
        sides = [run.examples.get(f"{side}_{i}") for side in ("easiest", "hardest")]
        images = [image for side in sides if side is not None for image in side]
        if images and sides[0] is not None:
            rows.append((images, len(sides[0])))
            routes.append("/".join(map(str, route["decisions"])))
    if not rows:
        return None
    height, width = rows[0][0][0].shape[:2]
    columns = max(len(images) for images, _ in rows) + 1  # one is left free between the sides
    picture = np.full((len(rows) * (height + GAP), columns * (width + GAP), 3), 255, dtype=np.uint8)
    for i, (images, left) in enumerate(rows):
        for j, image in enumerate(images):
            place = j if j < left else j + columns - len(images)
            top, begin = i * (height + GAP), place * (width + GAP)
            coloured = image if image.shape[2] == 3 else np.repeat(image[:, :, :1], 3, axis=2)
            picture[top : top + height, begin : begin + width] = coloured
    middles = tuple(i * (height + GAP) + height / 2 for i in range(len(rows)))
    return Examples(picture, tuple(routes), middles)


def _points(run: RunView) -> list[Mapping[str, Any]]:
    return list(run.dynamic["points"])


def _sentence(run: RunView) -> str:
    points, whole = _points(run), run.dynamic["largest_macs"]
    first, last = points[0], points[-1]
    if run.dynamic.get("method") == "ds":
        where = ", ".join(run.dynamic["paths"])
        told = f"Gates after {where} choose one of {len(run.dynamic['routes'])} sub-nets for each image"
    else:
        number = len(run.dynamic["blocks"])
        told = f"For each image {number} blocks, and groups of channels in them, are run or left out"
    return (
        f"{told}. From {_percent(first['mean_macs'] / whole)} of the MACs on average with "
        f"{text('top1_percent', first['top1_percent'])} to {_percent(last['mean_macs'] / whole)} with "
        f"{text('top1_percent', last['top1_percent'])} on search-validation, by one trained network."
    )


def _row(run: RunView, average: Average, point: Mapping[str, Any]) -> dict[str, str]:
    test, latency = point.get("test", {}), point.get("mean_latency_ms")
    return {
        "macs": text("macs", average.x),
        "share": _percent(average.x / run.dynamic["largest_macs"]),
        "spread": text("macs", average.spread),
        "val": text("top1_percent", average.y),
        "test": text("top1_percent", test["top1_percent"]) if test else "",
        "latency": "" if latency is None else text("latency_ms", latency),
    }


def _percent(share: float) -> str:
    return f"{100 * share:.1f}{NO_BREAK}%"
