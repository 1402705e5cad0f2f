"""How every figure looks: palette, style, an empty figure, and its bytes as PNG, PDF, SVG or inside a page."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from reports.svg import inline

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
def blank(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of so many inches with axes; leaves matplotlib's own settings as they were."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as NewFigure

    with rc_context(STYLE):
        figure = NewFigure(figsize=(width, height))
        FigureCanvasAgg(figure)
        yield figure, figure.add_subplot()


def above(axes: Axes, words: str, x: float, y: float, points: float, **style: Any) -> None:
    """Writes `words` so many points above a place."""
    axes.annotate(words, (x, y), (0, points), textcoords="offset points", ha="center", **style)
