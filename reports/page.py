"""The page: one self-contained HTML file that needs no network, with PNGs of its figures beside it."""

from __future__ import annotations

import os
import tempfile
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from reports import account, sections
from reports.view import RunView, read_run
from search_spaces import SubnetSearchError


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
    try:
        (out.parent / "figures").mkdir(parents=True, exist_ok=True)
        for name, content in figures.items():
            _replace(out.parent / "figures" / name, content)
        _replace(out, page.encode())
    except OSError as error:
        raise SubnetSearchError(
            f"the report {out} cannot be written: {error}; choose another place"
        ) from error
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
        pareto=sections.front(run, figures),
        growth=sections.growth(run, figures),
        measured=sections.headings(sections.measured_names(run)),
        chosen=[sections.subnet(run, chosen, folder, figures) for chosen in run.chosen],
        chosen_caption=sections.CHOSEN_CAPTION,
        full=sections.full_net(run),
        coverage=account.coverage(run),
        facts_of_run=account.facts(run),
        settings_toml=run.settings_toml,
    )
    return page, figures


def _replace(path: Path, content: bytes) -> None:
    """Writes whole or not at all; what was there stays until the new file is complete."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
