"""What each section of the page says: records turned into sentences, rows and drawn figures."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from reports.figures import draw_hypervolume, draw_pareto, draw_widths, inline_svg, render
from reports.series import hypervolume_view, pareto_view, width_map
from reports.units import text, words
from reports.view import BASELINES, Chosen, RunView
from search_spaces import COST_NAMES, InvalidInput

Figures = dict[str, bytes]  # name of the PNG below figures/ -> its bytes; sections add theirs
CHOSEN_CAPTION = (
    "Before and after fine-tuning are measured on the search-validation split, on which sub-nets are chosen; test is "
    "measured once, at the very end. The best uniform width is that of the search's own baseline, before fine-tuning."
)


def summary(run: RunView) -> str:
    """What was done, in one sentence with numbers."""
    source = _source(run)
    if not run.seen:
        return f"From {source}, no sub-net has been evaluated yet."
    counts = Counter(seen.searcher for seen in run.seen)
    by = {"uniform": "of uniform width", "random": "drawn at random"}
    parts = ", ".join(f"{counts[name]} {by.get(name, f'asked for by {name}')}" for name in run.searchers())
    told = f"From {source}, {sum(counts.values())} sub-nets were evaluated ({parts})"
    if run.front:
        told += f" and {len(run.front)} of them form the Pareto front"
    best = min(run.chosen, key=lambda c: c.costs.get("macs", 0), default=None)
    if best is None or "macs" not in best.costs or not run.full.get("macs"):
        return f"{told}."
    share = 100 * best.costs["macs"] / run.full["macs"]
    told += f"; of the {_count(len(run.chosen), 'chosen sub-net')}, {best.label} needs {share:.1f} % of the full net's"
    told += f" {text('macs', run.full['macs'])}"
    for name, split, mine, theirs in (
        ("top1_percent", "test", best.test, run.full_test),
        ("top1_percent", "search-validation", {**best.before, **best.after}, run.full),
    ):
        if name in mine:
            told += f" and reaches {text(name, mine[name])} top-1 on {split}"
            return told + (f" (full net: {text(name, theirs[name])})." if name in theirs else ".")
    return f"{told}."


def rebuild_command(run: str, key: str) -> str:
    """The shell command that makes a sub-net's files again from the run folder."""
    return f"subnet-search export {shlex.quote(run)} --key {shlex.quote(key)}"


def _source(run: RunView) -> str:
    model, data = (
        run.settings.get("model", {}).get("name", "the model"),
        run.settings.get("data", {}).get("source"),
    )
    size = f" ({_power(run.space.size)} sub-nets)" if run.space else ""
    return f"{model}{size} on {data}" if data else f"{model}{size}"


def notes(run: RunView) -> list[str]:
    notes = []
    if run.failures:
        most = Counter(run.failures).most_common(3)
        reasons = "; ".join(f"{reason or 'no reason given'} ({count})" for reason, count in most)
        notes.append(f"{_count(len(run.failures), 'evaluation')} failed: {reasons}.")
    if run.left_out:
        notes.append(
            f"{_count(run.left_out, 'evaluation')} of other weights, data or protocol are in the journal and left out here."
        )
    if run.chosen and not any(chosen.after for chosen in run.chosen):
        notes.append("The chosen sub-nets have not been fine-tuned yet.")
    if failed := [chosen.label for chosen in run.chosen if chosen.proof and not chosen.proof.get("passed")]:
        notes.append(f"The proof of {', '.join(failed)} failed: do not use these files.")
    return notes


def measured(run: RunView) -> list[str]:
    """Names of what was measured rather than computed, in the objectives' order."""
    names = [objective.name for objective in run.objectives]
    names += [
        name
        for chosen in run.chosen
        for values in (chosen.before, chosen.after, chosen.test)
        for name in values
    ]
    return [name for name in dict.fromkeys(names) if name not in COST_NAMES]


def headings(name: str) -> tuple[str, str, str]:
    quantity = "Top-1" if name == "top1_percent" else words(name)
    return f"{quantity} before", f"{quantity} fine-tuned", f"{quantity} on test"


def _plane(run: RunView) -> tuple[str, str]:
    """What the page's Pareto figure shows: MACs and top-1 where there are such, else the first two objectives."""
    names = [objective.name for objective in run.objectives]
    y = "top1_percent" if "top1_percent" in names else next(iter(names), "top1_percent")
    others = [name for name in names if name != y]
    return ("macs" if run.costs or "macs" in names else next(iter(others), "macs")), y


def pareto(run: RunView, figures: Figures) -> dict[str, Any]:
    missing = {"drawn": "", "missing": "There is no front to draw: no sub-net has been evaluated yet."}
    if not run.seen:
        return missing
    try:
        view = pareto_view(run, *_plane(run))
    except InvalidInput as error:
        return missing | {"missing": str(error)}
    figure = draw_pareto(view)
    figures["pareto.png"] = render(figure)
    ends = (
        [f"{text(view.x, p.x)} at {text(view.y, p.y)}" for p in (view.front[0], view.front[-1])]
        if view.front
        else []
    )
    counts = ", ".join(
        f"{len(s.points)} by {s.searcher}{' (baseline)' if s.baseline else ''}" for s in view.series
    )
    caption = f"Every point is one evaluated sub-net: {counts}."
    if ends:
        caption += f" The line joins the {len(view.front)} that no other beats in this plane, from {ends[0]} to {ends[1]}"
        caption += (
            f"; the front of all {len(run.objectives)} objectives has {len(run.front)} members."
            if run.front
            else "."
        )
    if any(c.before and c.after for c in view.chosen):
        caption += " Lines join the chosen sub-nets before (hollow) and after fine-tuning (full)."
    if view.full:
        caption += f" The full net: {text(view.x, view.full.x)} at {text(view.y, view.full.y)}."
    description = f"Scatter plot of {words(view.y)} against {words(view.x)}. {caption}"
    return {"drawn": Markup(inline_svg(figure, "pareto")), "description": description, "caption": caption} | {
        "png": "figures/pareto.png"
    }


def growth(run: RunView, figures: Figures) -> dict[str, Any]:
    try:
        view = hypervolume_view(run)
    except InvalidInput as error:
        return {"drawn": "", "missing": f"No comparison yet: {error}."}
    figure = draw_hypervolume(view)
    figures["hypervolume.png"] = render(figure)
    rows = [
        (
            g.searcher,
            g.evaluations[-1],
            _percent(view.percent_at_equal.get(g.searcher)),
            _percent(g.percent[-1]),
        )
        for g in view.growth
    ]
    asked = {name: value for name, value in view.percent_at_equal.items() if name not in BASELINES}
    sentence = "Only one kind of searcher has evaluated sub-nets, so there is nothing to compare it with."
    if asked and "random" in view.percent_at_equal:
        told = [f"{name} dominates {value:.2f} %" for name, value in asked.items()]
        sentence = (
            f"At the same number of evaluations, {view.equal}, {' and '.join(told)} of the box of objectives, "
            f"random choice {view.percent_at_equal['random']:.2f} %."
        )
    corners = "; ".join(
        f"{words(name)} {text(name, view.reference[name])} to {text(name, view.ideal[name])}"
        for name in view.reference
    )
    caption = f"The box spans from the reference to the best value seen of each objective: {corners}."
    return {
        "drawn": Markup(inline_svg(figure, "hypervolume")),
        "description": f"Line chart. {sentence} The table below holds the numbers.",
        "caption": caption,
        "sentence": sentence,
        "equal": view.equal,
        "rows": rows,
        "png": "figures/hypervolume.png",
    }


def chosen(
    run: RunView, chosen: Chosen, measured: Iterable[str], folder: str, figures: Figures
) -> dict[str, Any]:
    macs, params = chosen.costs.get("macs"), chosen.costs.get("params")
    uniform = _best_uniform(run, macs)
    accuracy = _plane(run)[1]
    bars = width_map(run.coverage, chosen)
    skipped = sum(chosen.config.get(block["knob"]) == 0 for block in run.coverage.get("blocks", ()))
    row: dict[str, Any] = {
        "label": chosen.label,
        "key": chosen.key,
        "macs": text("macs", macs),
        "macs_share": _share(macs, run.full.get("macs")),
        "params": text("params", params),
        "params_share": _share(params, run.full.get("params")),
        "measured": [
            text(name, values.get(name))
            for name in measured
            for values in (chosen.before, chosen.after, chosen.test)
        ],
        "uniform": text(accuracy, uniform.get(accuracy)),
        "uniform_macs": text("macs", uniform["macs"]) if "macs" in uniform else "",
        "proof": bool(chosen.proof["passed"]) if "passed" in chosen.proof else None,
        "proof_detail": f"max. difference {chosen.proof['max_abs_difference']:.1e}"
        if isinstance(chosen.proof.get("max_abs_difference"), int | float)
        else "",
        "files": [
            (quote(f"{folder}/{name}".removeprefix("./")), name.rpartition("/")[2], text("bytes", size))
            for name, size in chosen.files
        ],
        "bars": bars,
        "drawn": "",
        "shape": f"{skipped} of {_count(len(run.coverage.get('blocks', ())), 'skippable block')} skipped",
        "command": f"{rebuild_command(f'runs/{run.name}', chosen.key)}",
    }
    if bars:
        figure, name = draw_widths(bars), f"widths-{chosen.label}.png"
        figures[name] = render(figure)
        kept = ", ".join(
            f"{bar.path} {'skipped' if bar.skipped else f'{bar.kept} of {bar.full}'}" for bar in bars
        )
        row |= {"drawn": Markup(inline_svg(figure, f"widths-{chosen.label}")), "png": f"figures/{name}"}
        row["description"] = f"Bar chart of the channels each layer of sub-net {chosen.label} keeps: {kept}."
    return row


def full_net(run: RunView, measured: Iterable[str]) -> dict[str, Any] | None:
    """The row of the full net, to compare with."""
    if not run.full and not run.full_test:
        return None
    values = [text(name, at.get(name)) for name in measured for at in (run.full, {}, run.full_test)]
    return {
        "macs": text("macs", run.full.get("macs")),
        "params": text("params", run.full.get("params")),
        "measured": values,
    }


def coverage(run: RunView) -> dict[str, Any] | None:
    """What is elastic and what is not, reasons first."""
    table = run.coverage
    if not table:
        return None
    groups, blocks = table.get("groups", ()), table.get("blocks", ())
    sentence = f"{_count(len(groups), 'width knob')} and {_count(len(blocks), 'skippable block')}"
    if run.space:
        sentence += f" span {_power(run.space.size)} different sub-nets"
    if isinstance(share := table.get("reachable_macs_share"), int | float):
        sentence += (
            f"; {100 * share:.1f} % of the full net's MACs lie in layers that can shrink or be skipped"
        )
    ends = [table[end] for end in ("smallest", "largest") if end in table]
    sizes = [
        f"{text('macs', end.get('macs'))} and {text('params', end.get('params'))} parameters" for end in ends
    ]
    reasons: dict[str, list[str]] = defaultdict(list)
    for entry in table.get("fixed", ()):
        reasons[entry["reason"]].append(entry["path"])
    return {
        "sentence": f"{sentence}." + (f" They reach from {sizes[0]} to {sizes[-1]}." if sizes else ""),
        "groups": groups,
        "blocks": [block["path"] for block in blocks],
        "fixed": sorted(reasons.items()),
    }


def facts(run: RunView) -> list[tuple[str, list[tuple[str, str]]]]:
    """Captions and rows: the device with its versions, the data, the seeds and the methods."""
    tables = {name: table for name, table in run.settings.items() if isinstance(table, Mapping)}
    seeds = [(f"[{name}]", str(table["seed"])) for name, table in tables.items() if "seed" in table]
    if "seed" in run.settings:
        seeds.insert(0, ("recipe", str(run.settings["seed"])))
    seeds += [(f"fine-tuning of {c.label}", ", ".join(map(str, c.seeds))) for c in run.chosen if c.seeds]
    methods = [
        (words_, str(tables[table][key]))
        for words_, table, key in (
            ("Model", "model", "name"),
            ("Weights", "model", "weights"),
            ("Supernet epochs", "train", "epochs"),
            ("Ranking", "rank", "ranker"),
            ("Searcher", "search", "searcher"),
            ("Fine-tuning epochs", "finetune", "epochs"),
        )
        if key in tables.get(table, {})
    ]
    times = [
        datetime.fromtimestamp(event["time"], UTC).strftime("%Y-%m-%d %H:%M UTC")
        for event in run.events
        if "time" in event
    ]
    methods.append(
        ("Repeat it all", f"subnet-search run {shlex.quote(f'runs/{run.name}/settings.toml')} --name again")
    )
    methods += [("Begun", times[0]), ("Last event", times[-1])] if times else []
    stages: dict[str, float] = defaultdict(float)
    for event in run.events:
        if event["kind"] == "end" and "seconds" in event:
            stages[str(event.get("stage"))] += event["seconds"]
    parts = {
        "Method": methods,
        "Device and versions": _flat(run.device),
        "Data and splits": _flat(run.splits),
        "Seeds": seeds,
    }
    parts["Time of each stage"] = [(stage, f"{seconds:,.0f} s") for stage, seconds in stages.items()]
    return [(caption, rows or [("not recorded", "yet")]) for caption, rows in parts.items()]


def _best_uniform(run: RunView, macs: float | None) -> Mapping[str, float]:
    """The best evaluated sub-net of uniform width that costs no more MACs."""
    name = _plane(run)[1]
    fitting = [
        seen.values
        for seen in run.seen
        if seen.searcher == "uniform" and macs is not None and seen.values.get("macs", macs + 1) <= macs
    ]
    fitting = [values for values in fitting if name in values]
    if not fitting:
        return {}
    return max(fitting, key=lambda values: values[name] * (1 if run.goal(name) == "max" else -1))


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested JSON as rows of dotted names and texts."""
    rows: list[tuple[str, str]] = []
    for name, value in content.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            rows.append((f"{prefix}{name}", ", ".join(map(str, value))))
        else:
            rows.append((f"{prefix}{name}".replace("_", " "), str(value)))
    return rows


def _share(part: float | None, whole: float | None) -> str:
    return f"{100 * part / whole:.1f} % of full" if part is not None and whole else ""


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} %"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _power(number: int) -> str:
    """A whole number of any size: exact up to a million, then as 1.2 × 10³⁴."""
    if number < 10**6:
        return f"{number:,}"
    digits = len(str(number)) - 1
    power = str(digits).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{number // 10 ** (digits - 2) / 100:.1f} × 10{power}"
