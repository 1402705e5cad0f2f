"""The sections of the page that show figures and the chosen sub-nets: records turned into captions and rows."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from reports.figures import draw_hypervolume, draw_pareto, draw_widths, inline_svg, render
from reports.series import ParetoView, hypervolume_view, pareto_view, width_map
from reports.units import count, text, words
from reports.view import BASELINES, Chosen, RunView
from search_spaces import COST_NAMES, InvalidInput

Figures = dict[str, bytes]  # name of the PNG below figures/ -> its bytes; sections add theirs
Section = dict[str, Any]
CHOSEN_CAPTION = (
    "Before and after fine-tuning are measured on the search-validation split, on which sub-nets are chosen; "
    "test is looked at once, at the very end. The best uniform width is the search's own baseline, before "
    "fine-tuning. The full net is the supernet's largest on search-validation, the network given on test."
)


def rebuild_command(run: str, key: str) -> str:
    """The shell command that makes a sub-net's files again from the run folder."""
    return f"subnet-search export {shlex.quote(run)} --key {shlex.quote(key)}"


def front(run: RunView, figures: Figures) -> Section:
    """The Pareto figure, or the sentence that says why there is none."""
    if not run.seen:
        return _missing("There is no front to draw: no sub-net has been evaluated yet.")
    try:
        view = pareto_view(run, *_plane(run))
    except InvalidInput as error:
        return _missing(f"There is no front to draw: {error}.")
    caption = _front_caption(run, view)
    description = f"Scatter plot of {words(view.y)} against {words(view.x)}. {caption}"
    return _drawn(draw_pareto(view), "pareto", description, figures) | {"caption": caption}


def growth(run: RunView, figures: Figures) -> Section:
    """The searcher's hypervolume against chance, or the sentence that says why there is none."""
    try:
        view = hypervolume_view(run)
    except InvalidInput as error:
        return _missing(f"No comparison yet: {error}.")
    at_equal = view.percent_at_equal
    told = [f"{name} dominates {at_equal[name]:.2f} %" for name in at_equal if name not in BASELINES]
    sentence = "Only one kind of searcher has evaluated sub-nets, so there is nothing to compare it with."
    if told and "random" in at_equal:
        sentence = f"After the same number of evaluations, {view.equal}, {' and '.join(told)} of the box of "
        sentence += f"objectives, random choice {at_equal['random']:.2f} %."
    sides = [
        f"{words(name)} {text(name, worst)} to {text(name, view.ideal[name])}"
        for name, worst in view.reference.items()
    ]
    description = f"Line chart. {sentence} The table below holds the numbers."
    return _drawn(draw_hypervolume(view), "hypervolume", description, figures) | {
        "caption": f"The box spans from the reference to the best value seen: {'; '.join(sides)}.",
        "sentence": sentence,
        "equal": view.equal,
        "rows": [
            (g.searcher, g.evaluations[-1], _percent(at_equal.get(g.searcher)), _percent(g.percent[-1]))
            for g in view.growth
        ],
    }


def measured_names(run: RunView) -> list[str]:
    """Names of what was measured rather than computed, in the objectives' order."""
    names = [objective.name for objective in run.objectives]
    for chosen in run.chosen:
        names += [*chosen.before, *chosen.after, *chosen.test]
    return [name for name in dict.fromkeys(names) if name not in COST_NAMES]


def headings(names: Sequence[str]) -> list[str]:
    """The columns of measured values: before and after fine-tuning, and on test."""
    quantities = ["Top-1" if name == "top1_percent" else words(name) for name in names]
    return [f"{quantity} {when}" for quantity in quantities for when in ("before", "fine-tuned", "on test")]


def subnet(run: RunView, chosen: Chosen, folder: str, figures: Figures) -> Section:
    """One chosen sub-net: its row in the table, and its map of widths if that can be drawn."""
    bars = width_map(run.coverage, chosen)
    blocks = run.coverage.get("blocks", ())
    skipped = sum(chosen.config.get(block["knob"]) == 0 for block in blocks)
    kept = [f"{bar.path} {'skipped' if bar.skipped else f'{bar.kept} of {bar.full}'}" for bar in bars]
    description = f"Bar chart of the channels each layer of sub-net {chosen.label} keeps: {', '.join(kept)}."
    name = f"widths-{chosen.label}"
    return _row(run, chosen, folder) | {
        "bars": bars,
        "shape": f"{skipped} of {count(len(blocks), 'skippable block')} skipped",
        "command": rebuild_command(f"runs/{run.name}", chosen.key),
        **(_drawn(draw_widths(bars), name, description, figures) if bars else _missing("")),
    }


def full_net(run: RunView) -> Section | None:
    """The row of the full net, to compare with; None where nothing is known of it."""
    if not run.full and not run.full_test:
        return None
    return {
        **{name: text(name, run.full.get(name)) for name in ("macs", "params")},
        "measured": [
            text(name, values.get(name))
            for name in measured_names(run)
            for values in (run.full, {}, run.full_test)
        ],
    }


def _row(run: RunView, chosen: Chosen, folder: str) -> Section:
    uniform, accuracy = _best_uniform(run, chosen), _plane(run)[1]
    difference = chosen.proof.get("max_abs_difference")
    row: Section = {name: text(name, chosen.costs.get(name)) for name in ("macs", "params")}
    for name in ("macs", "params"):
        part, whole = chosen.costs.get(name), run.full.get(name)
        row[f"{name}_share"] = f"{100 * part / whole:.1f} % of full" if part is not None and whole else ""
    return row | {
        "label": chosen.label,
        "key": chosen.key,
        "measured": [
            text(name, values.get(name))
            for name in measured_names(run)
            for values in (chosen.before, chosen.after, chosen.test)
        ],
        "uniform": text(accuracy, uniform.get(accuracy)),
        "uniform_macs": text("macs", uniform["macs"]) if uniform else "",
        "proof": bool(chosen.proof["passed"]) if "passed" in chosen.proof else None,
        "proof_detail": "" if difference is None else f"max. difference {difference:.2g}",
        "files": [
            (quote(f"{folder}/{name}".removeprefix("./")), name.rpartition("/")[2], text("bytes", size))
            for name, size in chosen.files
        ],
    }


def _plane(run: RunView) -> tuple[str, str]:
    """The Pareto figure's x and y: MACs and top-1 where there are such, else the first two objectives."""
    names = [objective.name for objective in run.objectives]
    y = "top1_percent" if "top1_percent" in names else next(iter(names), "top1_percent")
    others = [name for name in names if name != y]
    return ("macs" if run.costs or "macs" in names else next(iter(others), "macs")), y


def _front_caption(run: RunView, view: ParetoView) -> str:
    asked = [f"{len(s.points)} by {s.searcher}{' (baseline)' if s.baseline else ''}" for s in view.series]
    told = f"Every point is one evaluated sub-net: {', '.join(asked)}."
    if view.front:
        left, right = (f"{text(view.x, p.x)} at {text(view.y, p.y)}" for p in (view.front[0], view.front[-1]))
        told += (
            f" The line joins the {len(view.front)} that no other beats in this plane, from {left} to {right}"
        )
        told += f" ({len(run.front)} when all {len(run.objectives)} objectives count)." if run.front else "."
    if any(c.before and c.after for c in view.chosen):
        told += " Diamonds are the chosen sub-nets before (hollow) and after fine-tuning (full)."
    if view.full:
        told += f" The full net: {text(view.x, view.full.x)} at {text(view.y, view.full.y)}."
    return told


def _best_uniform(run: RunView, chosen: Chosen) -> Mapping[str, float]:
    """The values of the best evaluated sub-net of uniform width that needs no more MACs."""
    name = _plane(run)[1]
    fitting = [
        seen.values
        for seen in run.seen
        if seen.searcher == "uniform"
        and {"macs", name} <= seen.values.keys()
        and seen.values["macs"] <= chosen.costs.get("macs", 0)
    ]
    sign = 1 if fitting and run.goal(name) == "max" else -1
    return max(fitting, key=lambda values: sign * values[name], default={})


def _drawn(figure: Any, name: str, description: str, figures: Figures) -> Section:
    figures[f"{name}.png"] = render(figure)
    drawn = Markup(inline_svg(figure, name))  # matplotlib has escaped the texts in it
    return {"drawn": drawn, "description": description, "png": f"figures/{name}.png"}


def _missing(sentence: str) -> Section:
    return {"drawn": "", "missing": sentence}


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} %"
