"""Draws the records of `series` and `widths`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from reports.canvas import FAINT, FRONT, INK, PAPER, RANDOM, SEARCHER, TUNED, UNIFORM, above, blank
from reports.series import HypervolumeView, ParetoView, PathView, Point, RerankView, SliceView
from reports.units import axis, text
from reports.widths import LayerBar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from reports.per_input import Examples, RoutesView

RUN_COLOURS = (SEARCHER, FRONT, "#009e73", TUNED, UNIFORM, "#56b4e9", INK, RANDOM)
MARKERS = "osD^vPX*"
BASELINE_STYLES: dict[str, dict[str, Any]] = {
    "uniform": {"marker": "s", "color": UNIFORM, "s": 34, "zorder": 4},
    "random": {"marker": "x", "color": RANDOM, "s": 20, "linewidths": 1.1, "zorder": 2},
}
BASELINE_NAMES = {"uniform": "uniform width (baseline)", "random": "random (baseline)"}
RANKER_STYLES: dict[str, tuple[str, str]] = {
    "noise": (SEARCHER, "-"),
    "weight_noise": (SEARCHER, "--"),
    "taylor": (FRONT, "-"),
    "l1": (UNIFORM, "-"),
    "bn_scale": (TUNED, "-"),
    "random": (RANDOM, "-."),
}
LETTER_PIXELS, LINE_PIXELS = 11, 16  # of bold labels, at the 100 dots per inch in which a figure is laid out


def draw_pareto(view: ParetoView) -> Figure:
    """Every evaluated sub-net by who asked for it, the front, the chosen sub-nets and the full net."""
    with blank(8.2, 5.0) as (figure, axes):
        x, y = _plane(axes, [view])
        for series in view.series:
            style = {"marker": "o", "color": SEARCHER, "s": 20, "alpha": 0.75, "linewidths": 0, "zorder": 3}
            if series.baseline:
                style = BASELINE_STYLES[series.searcher]
            name = BASELINE_NAMES[series.searcher] if series.baseline else series.searcher
            _scatter(axes, series.points, x, y, label=f"{name}, {len(series.points)}", **style)
        _front(axes, view, x, y, color=FRONT, label=f"front in this plane, {len(view.front)}")
        for limit, line in ((view.x_limit, axes.axvline), (view.y_limit, axes.axhline)):
            if limit is not None:
                divisor = x if line == axes.axvline else y
                line(limit / divisor, color=INK, linewidth=0.9, linestyle=(0, (5, 3)), label="limit")
        _intervals(axes, view, x, y)
        _averages(axes, view, x, y)
        if view.full:
            _scatter(axes, [view.full], x, y, label="full net", marker="*", color=INK, s=120, zorder=6)
        if knee := [point for point in view.front if view.knee and point.key == view.knee.member.config.key]:
            ring: dict[str, Any] = {"facecolors": "none", "edgecolors": INK, "s": 190, "linewidths": 1.4}
            _scatter(axes, knee, x, y, label="knee of the front", zorder=6.2, **ring)
        _chosen(axes, view, x, y)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, handletextpad=0.5)
    return figure


def draw_hypervolume(view: HypervolumeView) -> Figure:
    """Dominated hypervolume against the number of evaluations, one line for each searcher."""
    from matplotlib.ticker import MaxNLocator

    styles: dict[str, dict[str, Any]] = {
        "uniform": {"color": UNIFORM, "linestyle": "--", "marker": "s"},
        "random": {"color": RANDOM, "linestyle": "-.", "marker": "x"},
    }
    with blank(8.2, 3.7) as (figure, axes):
        for growth in view.growth:
            style = styles.get(growth.searcher, {"color": SEARCHER, "linestyle": "-", "marker": "o"})
            name = BASELINE_NAMES.get(growth.searcher, growth.searcher)
            style |= {"label": name, "markersize": 3, "linewidth": 1.6}
            axes.plot(growth.evaluations, growth.percent, **style)
        if len(view.percent_at_equal) > 1:
            axes.axvline(view.equal, color=INK, linewidth=0.9, linestyle=(0, (5, 3)))
            at_the_foot = axes.get_xaxis_transform()
            axes.text(
                view.equal, 0.02, f" {view.equal} evaluations each", transform=at_the_foot, fontsize=8.5
            )
        axes.set_xlabel("Evaluations made by each")
        axes.set_ylabel("Dominated hypervolume (% of box)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
    return figure


def draw_slices(view: SliceView) -> Figure:
    """Top-1 of nets of uniform width against that width, one line for each ranking; the one taken is thick."""
    with blank(8.2, 4.2) as (figure, axes):
        for place, curve in enumerate(view.curves):
            taken = curve.ranker == view.taken
            colour, line = RANKER_STYLES.get(curve.ranker, (INK, "-"))
            style: dict[str, Any] = {
                "color": colour,
                "linestyle": line,
                "marker": MARKERS[place % len(MARKERS)],
            }
            style |= {"linewidth": 2.6 if taken else 1.2, "markersize": 6 if taken else 4}
            name = f"{curve.ranker} (taken)" if taken else curve.ranker
            axes.plot(view.width_percent, curve.top1_percent, label=name, **style)
        axes.set_xlabel("Width kept in every layer (%)")
        axes.set_ylabel("Top-1 accuracy, untuned (%)")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
    return figure


def draw_path(view: PathView) -> Figure:
    """Top-1 against the share of multiply-adds along a path, as it was walked and as it was evaluated."""
    tuned = [step for step in view.steps if step.tuned]
    later = [(step.macs_percent, step.evaluated) for step in view.steps if step.evaluated is not None]
    with blank(8.2, 4.2) as (figure, axes):
        style: dict[str, Any] = {"linewidth": 1.4, "markersize": 4 if len(view.steps) <= 60 else 2.5}
        walked = [(step.macs_percent, step.walked) for step in view.steps]
        axes.plot(*zip(*walked, strict=True), color=SEARCHER, marker="o", label="as walked", **style)
        if tuned:
            ring: dict[str, Any] = {"facecolors": "none", "edgecolors": TUNED, "s": 70, "linewidths": 1.5}
            places = [step.macs_percent for step in tuned], [step.walked for step in tuned]
            axes.scatter(*places, marker="D", label="weights tuned here", zorder=3, **ring)
        if later:
            name = "after joint training" if view.joined else "as evaluated"
            axes.plot(*zip(*later, strict=True), color=FRONT, marker="s", label=name, **style)
        axes.set_xlabel("Multiply-adds (% of the whole net's)")
        axes.set_ylabel("Top-1 on search-validation (%)")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
    return figure


def draw_widths(bars: Sequence[LayerBar]) -> Figure:
    """The share of its full width that each layer keeps, in forward order; skipped blocks are hatched."""
    crowded = len(bars) > 36
    with blank(10.8 if crowded else max(4.8, 1.2 + 0.3 * len(bars)), 2.7) as (figure, axes):
        places = range(len(bars))
        kept = [100 * bar.kept / bar.full for bar in bars]
        axes.grid(visible=False, axis="x")
        axes.bar(places, [100] * len(bars), width=0.8, color=FAINT, label="full width")
        axes.bar(places, kept, width=0.8, color=SEARCHER, label="kept")
        if gone := [place for place in places if bars[place].skipped]:
            hatched: dict[str, Any] = {"color": PAPER, "edgecolor": FRONT, "hatch": "////", "linewidth": 0.8}
            axes.bar(gone, [100] * len(gone), width=0.8, label="block skipped", **hatched)
        if not crowded:
            for place, bar in zip(places, bars, strict=True):
                if not bar.skipped:
                    above(axes, str(bar.kept), place, kept[place], 1.5, fontsize=7)
        size = 5.5 if crowded else 7.5
        named = places[:: 1 + len(bars) // 110]  # more labels would overlap
        axes.set_xticks(
            list(named), [_short(bars[place].path) for place in named], rotation=90, fontsize=size
        )
        axes.set_xlim(-0.7, max(len(bars) - 0.3, 1))
        axes.set_ylim(0, 112)
        axes.set_yticks([0, 25, 50, 75, 100])
        axes.set_ylabel("Width kept (%)")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.2, fontsize=8.5)
    return figure


def draw_reranking(view: RerankView) -> Figure:
    """Two columns of chosen sub-nets, best on top: with inherited weights and tuned, joined by lines."""
    count = len(view.placed)
    with blank(6.4, 0.75 + 0.34 * count) as (figure, axes):
        axes.set_axis_off()
        axes.set_xlim(0, 1)
        axes.set_ylim(count - 0.5, -1.0)
        first = sorted(view.placed, key=lambda one: one.place_before)  # stable: of equal ones the tuned order
        for row, one in enumerate(view.placed):
            start = first.index(one)
            colour, line = (RANDOM, (0, (4, 2))) if one.beaten_by else (TUNED, "solid")
            axes.plot([0, 1], [start, row], color=colour, linestyle=line, linewidth=1.6, clip_on=False)
            style: dict[str, Any] = {"edgecolors": colour, "s": 46, "linewidths": 1.5, "zorder": 3}
            axes.scatter([0], [start], marker="D", facecolors=PAPER, clip_on=False, **style)
            axes.scatter([1], [row], marker="D", facecolors=colour, clip_on=False, **style)
            _beside(axes, f"{text(view.name, one.before)}   {one.label}", 0, start, "right")
            beaten = f"   no better than {' or '.join(one.beaten_by)}" if one.beaten_by else ""
            _beside(axes, f"{one.label}   {text(view.name, one.after)}{beaten}", 1, row, "left")
        _beside(axes, "inherited weights", 0, -0.85, "right", color=RANDOM)
        _beside(axes, "fine-tuned", 1, -0.85, "left", color=RANDOM)
    return figure


def draw_fronts(views: Sequence[ParetoView]) -> Figure:
    """The fronts of several runs in one plane, over the faint points that all of them evaluated."""
    with blank(8.2, 5.0) as (figure, axes):
        x, y = _plane(axes, views)
        for i, view in enumerate(views):
            colour, marker = RUN_COLOURS[i % len(RUN_COLOURS)], MARKERS[i % len(MARKERS)]
            points = [point for series in view.series for point in series.points]
            _scatter(axes, points, x, y, color=colour, marker=marker, s=10, alpha=0.25, linewidths=0)
            _front(axes, view, x, y, color=colour, marker=marker, markersize=4.5, label=view.run)
        axes.legend(loc="best")
    return figure


def _plane(axes: Axes, views: Sequence[ParetoView]) -> tuple[float, float]:
    """Labels both axes and returns what values are divided by to be in the labels' units."""
    points = [point for view in views for point in view.points()]
    x, y = axis(views[0].x, [p.x for p in points]), axis(views[0].y, [p.y for p in points])
    axes.set_xlabel(x.label)
    axes.set_ylabel(y.label)
    lowest, highest = min((p.x for p in points), default=0), max((p.x for p in points), default=0)
    if lowest > 0 and highest / lowest > 40:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    return x.divisor, y.divisor


def _scatter(axes: Axes, points: Sequence[Point], x: float, y: float, **style: Any) -> None:
    axes.scatter([p.x / x for p in points], [p.y / y for p in points], **style)


def _intervals(axes: Axes, view: ParetoView, x: float, y: float) -> None:
    """Thin bars through the points that were measured with a spread."""
    points = {point.key: point for series in view.series for point in series.points}
    wide = [(points[key], *spread) for key, spread in view.spread.items() if any(spread)]
    if wide:
        bars: dict[str, Any] = {"fmt": "none", "ecolor": RANDOM, "elinewidth": 0.8, "alpha": 0.7}
        axes.errorbar(
            [point.x / x for point, _, _ in wide],
            [point.y / y for point, _, _ in wide],
            xerr=[across / x for _, across, _ in wide] if any(across for _, across, _ in wide) else None,
            yerr=[up / y for _, _, up in wide] if any(up for _, _, up in wide) else None,
            label="spread of the measurement",
            zorder=2.5,
            **bars,
        )


def _front(axes: Axes, view: ParetoView, x: float, y: float, **style: Any) -> None:
    if view.front:
        xs, ys = [p.x / x for p in view.front], [p.y / y for p in view.front]
        axes.plot(xs, ys, drawstyle=f"steps-{view.step}", linewidth=1.5, zorder=3.5, **style)


def _averages(axes: Axes, view: ParetoView, x: float, y: float) -> None:
    """A net that decides for each input: mean costs, with bars as long as their standard deviation over inputs."""
    if view.averages:
        style: dict[str, Any] = {"fmt": "P", "color": INK, "markersize": 7, "elinewidth": 1.0, "capsize": 3}
        axes.errorbar(
            [one.x / x for one in view.averages],
            [one.y / y for one in view.averages],
            xerr=[one.spread / x for one in view.averages],
            label="dynamic, mean and spread over inputs",
            zorder=6.4,
            **style,
        )


def draw_routes(view: RoutesView) -> Figure:
    """What part of the images takes each route, a bar for each operating point; or a line for each block."""
    colours = (SEARCHER, UNIFORM, FRONT, TUNED, RANDOM, INK)
    with blank(8.2, 3.4) as (figure, axes):
        below = [0.0] * len(view.points)
        for i, share in enumerate(view.shares):
            colour = colours[i % len(colours)]
            if view.stacked:
                axes.bar(view.points, share.percent, bottom=below, color=colour, width=0.6, label=share.name)
                below = [low + more for low, more in zip(below, share.percent, strict=True)]
            else:
                axes.plot(
                    view.points,
                    share.percent,
                    color=colour,
                    marker=MARKERS[i % len(MARKERS)],
                    label=share.name,
                )
        axes.set_xlabel("Mean MACs (% of the whole network's)")
        axes.set_ylabel("Images (%)")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
    return figure


def draw_examples(view: Examples) -> Figure:
    """The example images, named by route."""
    height, width = view.picture.shape[:2]
    with blank(8.2, min(8.2 * height / width + 0.3, 9.0)) as (figure, axes):
        axes.imshow(view.picture, interpolation="nearest")
        axes.set_yticks(view.rows, [f"route {name}" for name in view.routes])
        axes.set_xticks([])
        axes.grid(visible=False)
    return figure


def _chosen(axes: Axes, view: ParetoView, x: float, y: float) -> None:
    """Hollow diamonds before, full ones after fine-tuning, joined and lettered."""
    before = [c.before for c in view.chosen if c.before]
    after = [c.after for c in view.chosen if c.after]
    style = {"marker": "D", "edgecolors": TUNED, "s": 46, "linewidths": 1.5, "zorder": 7}
    if before:
        _scatter(axes, before, x, y, facecolors=PAPER, label="chosen, before fine-tuning", **style)
    if after:
        _scatter(axes, after, x, y, facecolors=TUNED, label="chosen, fine-tuned", **style)
    named: dict[int, list[tuple[str, float, float]]] = {7: [], -16: []}  # by points above
    for label, first, last in view.chosen:
        if first and last:
            ends = [first.x / x, last.x / x], [first.y / y, last.y / y]
            axes.plot(*ends, color=TUNED, linewidth=1.2, zorder=6.5)
        if point := last or first:
            fell = first is not None and point.y < first.y  # then the line is above
            named[-16 if fell else 7].append((label, point.x / x, point.y / y))
    for away, group in named.items():
        for label, at_x, at_y in _joined(axes, group):
            box = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.6, "alpha": 0.8}
            above(axes, label, at_x, at_y, away, weight="bold", zorder=6.9, bbox=box)


def _joined(axes: Axes, named: Sequence[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """Joins labels that would overlap, until none do; a joined label stands in the middle, above the highest."""
    labels = sorted(named, key=lambda label: label[1:])  # from left to right
    for one, other in itertools.combinations(range(len(labels)), 2):
        (first, x, y), (second, at_x, at_y) = labels[one], labels[other]
        here, there = axes.transData.transform([(x, y), (at_x, at_y)])
        across, up = abs(here - there)
        if across < LETTER_PIXELS * (len(first) + len(second)) / 2 and up < LINE_PIXELS:
            middle, _ = axes.transData.inverted().transform((here + there) / 2)
            rest = [label for place, label in enumerate(labels) if place not in (one, other)]
            return _joined(axes, [*rest, (f"{first}, {second}", float(middle), max(y, at_y))])
    return labels


def _beside(axes: Axes, words: str, x: float, y: float, side: Literal["left", "right"], **style: Any) -> None:
    """Writes left ("right" aligned) or right ("left" aligned) of a place."""
    away = 10 if side == "left" else -10
    axes.annotate(words, (x, y), (away, 0), textcoords="offset points", ha=side, va="center", **style)


def _short(path: str) -> str:
    return path if len(path) <= 34 else f"{path[:15]}…{path[-18:]}"
