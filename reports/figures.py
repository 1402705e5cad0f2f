"""Draws the records of `series`: as PNG, PDF or SVG files, and as SVG that follows a page's colours."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from reports.series import HypervolumeView, LayerBar, ParetoView, Point
from reports.svg import inline
from reports.units import axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colour-blind safe palette; in SVG each colour becomes a CSS variable of the page.
INK, FAINT, PAPER = "#1c2127", "#d3d8de", "#fefefe"
SEARCHER, RANDOM, UNIFORM, FRONT, TUNED = "#0072b2", "#8b929b", "#e69f00", "#d55e00", "#b5588f"
VARIABLES = {
    INK: "--ink",
    FAINT: "--faint",
    PAPER: "--paper",
    SEARCHER: "--searcher",
    RANDOM: "--random",
    UNIFORM: "--uniform",
    FRONT: "--front",
    TUNED: "--tuned",
}
RUN_COLOURS = (SEARCHER, FRONT, "#009e73", TUNED, UNIFORM, "#56b4e9", INK, RANDOM)
MARKERS = "osD^vPX*"
BASELINE_STYLES: dict[str, dict[str, Any]] = {
    "uniform": {"marker": "s", "color": UNIFORM, "s": 34, "zorder": 4},
    "random": {"marker": "x", "color": RANDOM, "s": 20, "linewidths": 1.1, "zorder": 2},
}
BASELINE_NAMES = {"uniform": "uniform width (baseline)", "random": "random (baseline)"}
NEAR_PIXELS = 14  # at the 100 dots per inch in which a figure is laid out
STYLE: dict[Any, Any] = {
    "font.family": ["sans-serif"],
    "font.size": 9.5,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "subnet-search",
}


def draw_pareto(view: ParetoView) -> Figure:
    """Every evaluated sub-net by who asked for it, the front, the chosen sub-nets and the full net."""
    with _figure(8.2, 5.0) as (figure, axes):
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
        if view.full:
            _scatter(axes, [view.full], x, y, label="full net", marker="*", color=INK, s=120, zorder=6)
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
    with _figure(8.2, 3.7) as (figure, axes):
        for growth in view.growth:
            style = styles.get(growth.searcher, {"color": SEARCHER, "linestyle": "-", "marker": "o"})
            style |= {"label": growth.searcher, "markersize": 3, "linewidth": 1.6}
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


def draw_widths(bars: Sequence[LayerBar]) -> Figure:
    """The share of its full width that each layer keeps, in forward order; skipped blocks are hatched."""
    crowded = len(bars) > 36
    with _figure(10.8 if crowded else max(4.8, 1.2 + 0.3 * len(bars)), 2.7) as (figure, axes):
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
                    _above(axes, str(bar.kept), place, kept[place], 1.5, fontsize=7)
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


def draw_fronts(views: Sequence[ParetoView]) -> Figure:
    """The fronts of several runs in one plane, over the faint points that all of them evaluated."""
    with _figure(8.2, 5.0) as (figure, axes):
        x, y = _plane(axes, views)
        for i, view in enumerate(views):
            colour, marker = RUN_COLOURS[i % len(RUN_COLOURS)], MARKERS[i % len(MARKERS)]
            points = [point for series in view.series for point in series.points]
            _scatter(axes, points, x, y, color=colour, marker=marker, s=10, alpha=0.25, linewidths=0)
            _front(axes, view, x, y, color=colour, marker=marker, markersize=4.5, label=view.run)
        axes.legend(loc="best")
    return figure


def render(figure: Figure, kind: str = "png") -> bytes:
    """The figure as the bytes of a "png", "svg" or "pdf" file, the same at every call."""
    from matplotlib import rc_context

    stream = io.BytesIO()
    with rc_context(STYLE):
        no_date = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
        figure.savefig(stream, format=kind, dpi=180, bbox_inches="tight", pad_inches=0.08, metadata=no_date)
    return stream.getvalue()


def inline_svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element for a page: coloured by CSS variables, its ids unique to `name`."""
    return inline(render(figure, "svg").decode(), name, VARIABLES)


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of so many inches that leaves matplotlib's own settings as they were."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as NewFigure

    with rc_context(STYLE):
        figure = NewFigure(figsize=(width, height))
        FigureCanvasAgg(figure)
        yield figure, figure.add_subplot()


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


def _front(axes: Axes, view: ParetoView, x: float, y: float, **style: Any) -> None:
    if view.front:
        xs, ys = [p.x / x for p in view.front], [p.y / y for p in view.front]
        axes.plot(xs, ys, drawstyle=f"steps-{view.step}", linewidth=1.5, zorder=3.5, **style)


def _chosen(axes: Axes, view: ParetoView, x: float, y: float) -> None:
    """Hollow diamonds before, full ones after fine-tuning, joined and lettered."""
    before = [c.before for c in view.chosen if c.before]
    after = [c.after for c in view.chosen if c.after]
    style = {"marker": "D", "edgecolors": TUNED, "s": 46, "linewidths": 1.5, "zorder": 7}
    if before:
        _scatter(axes, before, x, y, facecolors=PAPER, label="chosen, before fine-tuning", **style)
    if after:
        _scatter(axes, after, x, y, facecolors=TUNED, label="chosen, fine-tuned", **style)
    named: list[tuple[str, float, float]] = []
    for label, first, last in view.chosen:
        if first and last:
            ends = [first.x / x, last.x / x], [first.y / y, last.y / y]
            axes.plot(*ends, color=TUNED, linewidth=1.2, zorder=6.5)
        if point := last or first:
            named.append((label, point.x / x, point.y / y))
    for label, at_x, at_y in _joined(axes, named):
        _above(axes, label, at_x, at_y, 7, weight="bold", zorder=8)


def _joined(axes: Axes, named: Sequence[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """Joins the labels of points that lie too close together for a label each."""
    joined: list[tuple[str, float, float]] = []
    for label, x, y in named:
        here = axes.transData.transform((x, y))
        for place, (others, at_x, at_y) in enumerate(joined):
            if abs(axes.transData.transform((at_x, at_y)) - here).max() < NEAR_PIXELS:
                joined[place] = (f"{others}, {label}", at_x, max(at_y, y))
                break
        else:
            joined.append((label, x, y))
    return joined


def _above(axes: Axes, words: str, x: float, y: float, points: float, **style: Any) -> None:
    axes.annotate(words, (x, y), (0, points), textcoords="offset points", ha="center", **style)


def _short(path: str) -> str:
    return path if len(path) <= 34 else f"{path[:15]}…{path[-18:]}"
