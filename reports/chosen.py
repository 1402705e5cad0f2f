"""The chosen sub-nets on the page: their table, what fine-tuning did to their order, and their shapes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote

from reports.figures import draw_reranking, draw_widths
from reports.sections import Figures, Section, drawn, missing
from reports.series import RerankView, planes, rerank_view
from reports.units import count, points, text, words
from reports.view import Chosen, RunView
from reports.widths import width_map
from search_spaces import COST_NAMES, RESOLUTION_KNOB, InvalidInput
from subnet_search.record.reranking import ENOUGH
from subnet_search.settings import LATENCY

CAPTION = (
    "Before and after fine-tuning are measured on the search-validation split, on which sub-nets are chosen; "
    "test is looked at once, at the very end. The best uniform width is the search's own baseline, before "
    "fine-tuning. The full net is the supernet's largest on search-validation, the network given on test."
)
LATENCY_CAPTION = (
    " Latency is measured once more of the chosen sub-nets, each by itself on the device named below."
)
WHEN = (("before", "before"), ("after", "fine-tuned"), ("test", "on test"))


class Column(NamedTuple):
    """A column of measured values: the value's name, when it was measured, and the two lines of the heading."""

    name: str
    when: str  # "before", "after", "test" or "searched"
    heading: tuple[str, str]


def columns(run: RunView) -> list[Column]:
    """A column for each value that was measured of some sub-net, in the objectives' order.

    What neither tuning nor split changes, a latency, has a single column; so has what only the search measured.
    """
    names = [objective.name for objective in run.objectives]
    for chosen in run.chosen:
        names += [*chosen.before, *chosen.after, *chosen.test]
    found: list[Column] = []
    for name in dict.fromkeys(name for name in names if name not in COST_NAMES):
        quantity = "Top-1" if name == "top1_percent" else words(name)
        again = [when for when, _ in WHEN if any(name in getattr(chosen, when) for chosen in run.chosen)]
        if name != LATENCY and (again or name == "top1_percent"):
            told = [(when, line) for when, line in WHEN if when in again or name == "top1_percent"]
            found += [Column(name, when, (quantity, line)) for when, line in told]
        else:
            found.append(Column(name, "after" if again else "searched", (quantity, "")))
    return found


def caption(run: RunView) -> str:
    """What the table's columns are."""
    again = any((c.name, c.when) == (LATENCY, "after") for c in columns(run))
    return CAPTION + LATENCY_CAPTION * again + _tied(run)


def _tied(run: RunView) -> str:
    """Which chosen sub-nets are equally fast, as far as anybody can tell."""
    labels = {chosen.key: chosen.label for chosen in run.chosen}
    groups = [sorted(labels[key] for key in keys if key in labels) for keys in run.ties]
    told = "; ".join(" and ".join(group) for group in groups if len(group) > 1)
    return f" Measured when they were chosen, these were not told apart in latency: {told}." if told else ""


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
        "shape": f"{skipped} of {count(len(blocks), 'skippable block')} skipped{_images(chosen)}",
        "command": rebuild_command(f"runs/{run.name}", chosen.key),
        **(drawn(draw_widths(bars), name, description, figures) if bars else missing("")),
    }


def _images(chosen: Chosen) -> str:
    """The height of the images that a sub-net takes, where sub-nets differ in that."""
    return f", images of {chosen.config[RESOLUTION_KNOB]} pixels" if RESOLUTION_KNOB in chosen.config else ""


def full_net(run: RunView) -> Section | None:
    """The row of the full net, to compare with; None where nothing is known of it."""
    if not run.full and not run.full_test:
        return None
    after = {name: value for name, value in run.full_test.items() if name == LATENCY}
    known = {"before": run.full, "searched": run.full, "test": run.full_test, "after": after}
    return {
        **{name: text(name, run.full.get(name)) for name in ("macs", "params")},
        "measured": [(text(c.name, known[c.when].get(c.name)), "") for c in columns(run)],
    }


def reranking(run: RunView, figures: Figures) -> Section:
    """The order of the chosen sub-nets before and after fine-tuning, or the sentence that says why not."""
    try:
        view = rerank_view(run)
    except InvalidInput as error:
        return missing(f"Nothing to put in order yet: {error}.")
    rows = [
        {
            "place": one.place,
            "label": one.label,
            "after": text(view.name, one.after),
            "before": text(view.name, one.before),
            "place_before": one.place_before,
            "change": f"{'+' if one.after >= one.before else '−'}{points(view.name, abs(one.after - one.before))}",
            "beaten": f"no better than {' or '.join(one.beaten_by)} in anything" if one.beaten_by else "",
        }
        for one in view.placed
    ]
    told = [f"{row['place']}. {row['label']} {row['after']} (was {row['place_before']}.)" for row in rows]
    sentence = _agreement(view)
    description = f"Two columns of sub-nets joined by lines. {', '.join(told)}. {sentence}"
    return drawn(draw_reranking(view), "order", description, figures) | {
        "sentence": sentence,
        "beaten": _beaten(run, view),
        "rows": rows,
    }


def rebuild_command(run: str, key: str) -> str:
    """The shell command that makes a sub-net's files again from the run folder."""
    return f"subnet-search export {shlex.quote(run)} --key {shlex.quote(key)}"


def uniform_heading(run: RunView) -> str:
    """Of no more of what the uniform width in the table is."""
    x = planes(run)[0][0]
    return "MACs" if x == "macs" else words(x).lower()


def _agreement(view: RerankView) -> str:
    """How well accuracy with inherited weights foretells accuracy after tuning."""
    found = view.agreement
    told = "Rank correlation of accuracy with inherited weights and after fine-tuning: "
    if found.tau is None or found.p_value is None:
        few = f"too few to tell ({ENOUGH} are needed)" if found.count < ENOUGH else "all equal on one side"
        return f"{told}{found.count} chosen sub-nets, {few}."
    p_value = f"= {found.p_value:.2g}" if found.p_value >= 0.001 else "< 0.001"
    told += f"Kendall's tau {found.tau:.2f} (n = {found.count}, p {p_value}).".replace(" = ", "\u00a0=\u00a0")
    return f"{told} The chosen differ in cost, so part of any agreement is that larger nets stay better."


def _beaten(run: RunView, view: RerankView) -> str:
    """Which chosen sub-nets are not worth having any more."""
    beaten = [one for one in view.placed if one.beaten_by]
    if not beaten:
        return "After fine-tuning no chosen sub-net is beaten by another one in every objective."
    *names, last = [words(name) for name in dict.fromkeys([view.name, *(o.name for o in run.objectives)])]
    told = ", ".join(f"{one.label} by {' and '.join(one.beaten_by)}" for one in beaten)
    several = f"{', '.join(names)} and {last}" if names else last
    return (
        f"After fine-tuning {count(len(beaten), 'chosen sub-net')} {'is' if len(beaten) == 1 else 'are'} beaten "
        f"({told}): no better in {several.lower()}, and worse in at least one of them."
    )


def _row(run: RunView, chosen: Chosen, folder: str) -> Section:
    x, y = planes(run)[0]
    uniform = _best_uniform(run, chosen, x, y)
    difference = chosen.proof.get("max_abs_difference")
    row: Section = {name: text(name, chosen.costs.get(name)) for name in ("macs", "params")}
    for name in ("macs", "params"):
        part, whole = chosen.costs.get(name), run.full.get(name)
        row[f"{name}_share"] = f"{100 * part / whole:.1f} % of full" if part is not None and whole else ""
    return row | {
        "label": chosen.label,
        "key": chosen.key,
        "measured": [_measured(chosen, column) for column in columns(run)],
        "uniform": text(y, uniform.get(y)),
        "uniform_cost": text(x, uniform[x]) if uniform else "",
        "proof": bool(chosen.proof["passed"]) if "passed" in chosen.proof else None,
        "proof_detail": "" if difference is None else f"max. diff. {difference:.2g}",
        "files": [
            (quote(f"{folder}/{name}".removeprefix("./")), name.rpartition("/")[2], text("bytes", size))
            for name, size in chosen.files
        ],
    }


def _measured(chosen: Chosen, column: Column) -> tuple[str, str]:
    """A value and, where the search measured it with one, its spread."""
    spread = chosen.spread.get(column.name, 0.0) if column.when == "searched" else 0.0
    value = getattr(chosen, column.when).get(column.name)
    return text(column.name, value), f"± {text(column.name, spread)}" if spread else ""


def _best_uniform(run: RunView, chosen: Chosen, x: str, y: str) -> Mapping[str, float]:
    """The values of the best evaluated sub-net of uniform width that costs no more."""
    bound = chosen.inherited().get(x, 0.0)
    fitting = [
        seen.values
        for seen in run.seen
        if seen.searcher == "uniform" and {x, y} <= seen.values.keys() and seen.values[x] <= bound
    ]
    sign = 1 if fitting and run.goal(y) == "max" else -1
    return max(fitting, key=lambda values: sign * values[y], default={})
