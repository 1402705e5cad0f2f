"""The page: one self-contained HTML file that needs no network, with PNGs of its figures beside it."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from reports import account, aligned, chosen, per_input, sections, structured
from reports.reading import read_run
from reports.view import RunView
from subnet_search.record.atomic import telling_what_failed, write_whole


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Writes the report of a run folder, finished or not, and returns its path.

    Args:
        folder: the run folder; nothing else is read.
        out: the HTML file, by default `report.html` in the run folder. PNGs go to `figures/` beside it.

    Raises:
        InvalidInput: not a run folder, or a file of it is corrupt.
        SubnetSearchError: the report cannot be written there.
    """
    out = Path(folder, "report.html") if out is None else Path(out)
    page, figures = build_page(read_run(folder), os.path.relpath(folder, out.parent))
    contents = {out.parent / "figures" / name: png for name, png in figures.items()}
    for path, content in {**contents, out: page.encode()}.items():
        with telling_what_failed(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
    return out


def build_page(run: RunView, folder: str = ".") -> tuple[str, dict[str, bytes]]:
    """The page and its PNGs by name; `folder` is the run folder as seen from the page's."""
    figures: dict[str, bytes] = {}
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(
        files("reports").joinpath("template.html").read_text("utf-8")
    )
    page = template.render(
        title=str(run.setting("report", "title") or run.name),
        summary=account.summary(run),
        notes=account.notes(run),
        fronts=sections.fronts(run, figures),
        growth=sections.growth(run, figures),
        slices=sections.slices(run, figures),
        path=sections.path(run, figures),
        measured=[column.heading for column in chosen.columns(run)],
        chosen=[chosen.subnet(run, subnet, folder, figures) for subnet in run.chosen],
        dynamic=per_input.section(run, figures),
        structured=structured.section(run),
        aligned=aligned.section(run),
        chosen_caption=chosen.caption(run),
        uniform_heading=chosen.uniform_heading(run),
        reranking=chosen.reranking(run, figures),
        full=chosen.full_net(run),
        coverage=account.coverage(run),
        facts_of_run=account.facts(run),
        settings_toml=run.settings_toml,
    )
    return page, figures
