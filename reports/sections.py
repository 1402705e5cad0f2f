"""The sections of the page about the search: records turned into captions, sentences and rows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from reports.canvas import inline_svg, render
from reports.figures import draw_hypervolume, draw_pareto, draw_path, draw_slices
from reports.series import (
    ParetoView,
    PathStep,
    PathView,
    hypervolume_view,
    pareto_view,
    path_view,
    planes,
    slice_view,
)
from reports.units import NO_BREAK, Axis, count, points, price_unit, short, text, words
from reports.view import BASELINES, RunView
from search_spaces import COST_NAMES, InvalidInput
from subnet_search.record.objective import Evaluation
from subnet_search.record.tradeoff import Step

Figures = dict[str, bytes]  # name of the PNG below figures/ -> its bytes; sections add theirs
Section = dict[str, Any]
SHOWN_STEPS = 12  # of more, only the sentence stands open


def fronts(run: RunView, figures: Figures) -> list[Section]:
    """A Pareto figure for every two objectives to trade, the main one first, with the price of each step.

    What stands in for the main one says why there is none. Further planes of exact costs are folded away: they
    look much like that of the MACs.
    """
    if not run.seen:
        return [missing("There is no front to draw: no sub-net has been evaluated yet.")]
    found: list[Section] = []
    main, *_ = planes(run)
    for place, (x, y) in enumerate(planes(run)):
        try:
            view = pareto_view(run, x, y)
        except InvalidInput as error:
            return [missing(f"There is no front to draw: {error}.")]
        caption = _front_caption(run, view)
        description = f"Scatter plot of {words(y)} against {words(x)}. {caption}"
        name = f"pareto-{place + 1}" if place else "pareto"
        found.append(
            drawn(draw_pareto(view), name, description, figures)
            | {"title": f"{words(y)} against {words(x).lower()}", "caption": caption}
            | {"folded": x in COST_NAMES and (x, y) != main and y == main[1], "steps": _steps(run, view)}
        )
    return found


def growth(run: RunView, figures: Figures) -> Section:
    """The searcher's hypervolume against chance, or the sentence that says why there is none."""
    try:
        view = hypervolume_view(run)
    except InvalidInput as error:
        return missing(f"No comparison yet: {error}.")
    at_equal = view.percent_at_equal
    told = [f"{name} dominates {_percent(at_equal[name])}" for name in at_equal if name not in BASELINES]
    sentence = "Only one kind of searcher has evaluated sub-nets, so there is nothing to compare it with."
    if told and "random" in at_equal:
        sentence = f"After the same number of evaluations, {view.equal}, {' and '.join(told)} of the box of "
        sentence += f"objectives, random choice {_percent(at_equal['random'])}."
        for control in (g for g in view.growth if g.searcher == "uniform"):
            sentence += f" The control that needs no search, {control.evaluations[-1]} nets of one width"
            sentence += f" everywhere, dominates {_percent(control.percent[-1])}."
    sides = [
        f"{words(name)} {text(name, worst)} to {text(name, view.ideal[name])}"
        for name, worst in view.reference.items()
    ]
    description = f"Line chart. {sentence} The table below holds the numbers."
    names = {"uniform": "uniform width (control)", "random": "random choice"}
    return drawn(draw_hypervolume(view), "hypervolume", description, figures) | {
        "caption": f"The box spans from the reference to the best value seen: {'; '.join(sides)}.",
        "sentence": sentence,
        "equal": view.equal,
        "rows": [
            (
                names.get(g.searcher, g.searcher),
                g.evaluations[-1],
                _percent(at_equal.get(g.searcher)),
                _percent(g.percent[-1]),
            )
            for g in view.growth
        ],
    }


def slices(run: RunView, figures: Figures) -> Section:
    """How the rankings compare, or the sentence that says why they do not."""
    try:
        view = slice_view(run)
    except InvalidInput as error:
        return missing(f"No slice curves: {error}.")
    first, *others = view.curves
    means = {curve.ranker: curve.mean for curve in view.curves}
    sentence = (
        f"Channels were put in the order of {view.taken}: nets of one width everywhere that keep the channels"
    )
    sentence += f" ranked first reach {_percent(means[view.taken])} on average"
    further = [
        f"{_percent(curve.mean)} by {curve.ranker}"
        for curve in (first, *others)
        if curve.ranker != view.taken
    ]
    sentence += f", {', '.join(further)}." if further else "."
    caption = f"Top-1 on {view.images:,} images of search-validation, each net with batch-norm statistics of its own"
    caption += " and the trained network's weights; nothing is tuned."
    description = f"Line chart of top-1 against width. {sentence} The table below holds the numbers."
    return drawn(draw_slices(view), "slices", description, figures) | {
        "sentence": sentence,
        "caption": caption,
        "widths": [f"{width:.4g}{NO_BREAK}%" for width in view.width_percent],
        "macs": [f"{share:.0f}{NO_BREAK}%" for share in view.macs_percent],
        "rows": [
            (curve.ranker, [*map(_percent, curve.top1_percent), _percent(curve.mean)])
            for curve in view.curves
        ],
    }


def path(run: RunView, figures: Figures) -> Section | None:
    """The path of a progressive search, or why it cannot be shown; None where no path was walked."""
    if not run.path:
        return None
    try:
        view = path_view(run)
    except InvalidInput as error:
        return missing(f"No figure of the path: {error}.")
    smallest = min(step.macs_percent for step in view.steps)
    sentence = (
        f"The path has {count(len(view.steps), 'nested sub-net')}{'' if view.complete else ' so far'}, the"
    )
    sentence += f" smallest with {smallest:.1f}{NO_BREAK}% of the whole net's MACs; finding it took"
    sentence += f" {view.spent_images:,} image forwards."
    later = any(step.evaluated is not None for step in view.steps)
    headings = ["as walked", *(["after joint training" if view.joined else "as evaluated"] if later else [])]
    description = f"Line chart of top-1 against multiply-adds. {sentence} The table below holds the numbers."
    return drawn(draw_path(view), "path", description, figures) | {
        "sentence": sentence,
        "caption": _path_caption(view),
        "headings": headings,
        "rows": [
            {
                "knob": step.dropped,
                "change": _change(run, step),
                "tuned": step.tuned,
                "macs": f"{step.macs_percent:.1f}{NO_BREAK}%",
                "values": [*map(_percent, (step.walked, step.evaluated)[: len(headings)])],
            }
            for step in view.steps
        ],
    }


def drawn(figure: Any, name: str, description: str, figures: Figures) -> Section:
    """The figure inside the page, and its PNG beside it."""
    figures[f"{name}.png"] = render(figure)
    svg = Markup(inline_svg(figure, name))  # matplotlib has escaped the texts in it
    return {"drawn": svg, "description": description, "png": f"figures/{name}.png"}


def missing(sentence: str) -> Section:
    """A section without its figure, and why."""
    return {"drawn": "", "missing": sentence}


def _path_caption(view: PathView) -> str:
    images = f"{view.images:,} images" if view.images else "those images"
    told = f"As walked: top-1 on {images} of search-validation that the walk looked at, with the weights"
    told += " before joint training."
    if any(step.tuned for step in view.steps):
        told += " At a diamond the weights were tuned; the sub-nets after it have them."
    if later := sum(step.evaluated is not None for step in view.steps):
        told += f" {'After joint training' if view.joined else 'As evaluated'}: {later} of {len(view.steps)}"
        told += " sub-nets, evaluated by the search on all of search-validation."
    return told


def _change(run: RunView, step: PathStep) -> str:
    """What the drop did to its knob."""
    if step.kept is None or run.space is None:
        return "whole net"
    depths = {knob.name for knob in run.space.knobs if knob.kind == "depth"}
    return "block skipped" if step.dropped in depths else "{} → {}".format(*step.kept)


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


def _steps(run: RunView, view: ParetoView) -> Section | None:
    """What the next step along the front costs: a sentence, and a row for each step; None without steps."""
    if not view.steps:
        return None
    cost, gain = (sum(values) for values in zip(*((s.extra_cost, s.gain) for s in view.steps), strict=True))
    unit = price_unit(view.x, cost / gain)
    marks = {c.before.key: c.label for c in view.chosen if c.before}
    knee = view.knee.member.config.key if view.knee else ""
    return {
        "sentence": _knee_sentence(run, view, unit),
        "unit": unit.label,
        "gain_unit": points(view.y, 1).partition("\u00a0")[2].removesuffix("s") or words(view.y).lower(),
        "open": len(view.steps) <= SHOWN_STEPS,
        "rows": [
            {
                "cost": text(view.x, _value(view, step.dearer, view.x)),
                "quality": text(view.y, _value(view, step.dearer, view.y)),
                "label": marks.get(step.dearer.config.key, ""),
                "knee": step.dearer.config.key == knee,
                "extra_cost": f"+{text(view.x, step.extra_cost)}",
                "gain": f"{'+' if run.goal(view.y) == 'max' else '−'}{points(view.y, step.gain)}",
                "price": short(step.gain_per_cost * unit.divisor),
                "inverse": short(step.cost_per_gain / unit.divisor),
            }
            for step in view.steps
        ],
        "start": f"{text(view.x, view.front[0].x)} at {text(view.y, view.front[0].y)}",
        "start_label": marks.get(view.front[0].key, ""),
    }


def _knee_sentence(run: RunView, view: ParetoView, unit: Axis) -> str:
    """Where the front bends, what one more unit of cost buys on either side, and what chance makes of it."""

    def bought(steps: Sequence[Step]) -> str:
        gain = sum(step.gain for step in steps) / sum(step.extra_cost for step in steps)
        return points(view.y, 1).replace("1.00", short(gain * unit.divisor))

    if view.knee is None:
        told = "The front has no knee: no member stands above the straight line between its two ends."
        told += f" Along all of it one more {_one(unit)} buys {bought(view.steps)} on average."
    else:
        member = view.knee.member
        place = [step.dearer for step in view.steps].index(member) + 1
        told = f"The front bends most at {text(view.x, _value(view, member, view.x))} and"
        told += f" {text(view.y, _value(view, member, view.y))}, its knee (ringed):"
        told += f" {points(view.y, view.knee.above_chord)} above the straight line between its two ends, on"
        told += (
            f" linear axes. Up to there one more {_one(unit)} buys {bought(view.steps[:place])} on average,"
        )
        told += f" beyond it {bought(view.steps[place:])}."
    images = run.splits.get("images", {}).get("search_val")
    if images and view.y == "top1_percent":
        told += f" One of the {images:,} search-validation images is {points(view.y, 100 / images)}, so steps"
        told += " of a few images can be chance."
    return told + _spread_sentence(view)


def _spread_sentence(view: ParetoView) -> str:
    """How well the costs along the front are known, where they were measured with a spread."""
    known = [view.spread[point.key][0] for point in view.front if point.key in view.spread]
    if not any(known):
        return ""
    typical = text(view.x, statistics.median(known))
    return f" {words(view.x)} along the front is known to ±{typical} (median); cheaper steps may be none."


def _one(unit: Axis) -> str:
    """ "M MACs", "ms"; several parameters or bytes are priced, but one of them reads in the singular."""
    return unit.label.removesuffix("s") if unit.label in ("MACs", "parameters") else unit.label


def _value(view: ParetoView, member: Evaluation, name: str) -> float:
    return member.values[0 if name == view.x else 1]


def _percent(value: float | None) -> str:
    return text("percent", value)
