"""One picture of the fronts of one or more runs, for `subnet-search plot`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reports.canvas import render
from reports.figures import draw_fronts, draw_pareto
from reports.reading import read_run
from reports.series import pareto_view
from search_spaces import InvalidInput
from subnet_search.record.atomic import telling_what_failed, write_whole


def plot_front(
    runs: str | Path | Sequence[str | Path],
    x: str = "macs",
    y: str = "top1_percent",
    out: str | Path = "front.png",
) -> Path:
    """Draws the Pareto fronts of one or more run folders into one figure.

    Args:
        runs: run folders; a single one is drawn in full, with its baselines and chosen sub-nets.
        x, y: objectives or costs that every run knows.
        out: the file to write; its ending decides between .png, .svg and .pdf.

    Raises:
        InvalidInput: no run, a folder that is no run, values a run does not have, another ending.
        SubnetSearchError: the file cannot be written.
    """
    folders = [runs] if isinstance(runs, str | Path) else list(runs)
    out = Path(out)
    if out.suffix not in (".png", ".svg", ".pdf"):
        raise InvalidInput(f"a figure is written as .png, .svg or .pdf, got {str(out)!r}")
    if not folders:
        raise InvalidInput("a figure needs at least one run folder, got none")
    views = [pareto_view(read_run(folder), x, y) for folder in folders]
    figure = draw_pareto(views[0]) if len(views) == 1 else draw_fronts(views)
    with telling_what_failed(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, render(figure, out.suffix[1:]))
    return out
