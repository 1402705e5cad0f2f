"""What was done, with what: the sentences and tables of a report that need no figure."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from reports.units import count, magnitude, text
from reports.view import Chosen, RunView

Rows = list[tuple[str, str]]
LONG = 12  # entries of a list that are told
METHODS = (
    ("Model", "model", "name"),
    ("Weights", "model", "weights"),
    ("Supernet epochs", "train", "epochs"),
    ("Ranking", "rank", "ranker"),
    ("Searcher", "search", "searcher"),
    ("Fine-tuning epochs", "finetune", "epochs"),
)
METHODS_OF_A_PATH = (
    ("Path scored by", "progressive", "criterion"),
    ("Joint training epochs", "progressive", "epochs"),
    ("Teacher of joint training", "progressive", "teacher"),
)


def summary(run: RunView) -> str:
    """What was done, in one sentence with numbers."""
    model, data = run.setting("model", "name"), run.setting("data", "source")
    told = f"From {model or 'the model'}"
    told += f" ({magnitude(run.space.size)} sub-nets)" if run.space else ""
    told += f" on {data}" if data else ""
    if not run.seen:
        return f"{told}, no sub-net has been evaluated yet."
    counts = Counter(seen.searcher for seen in run.seen)
    by = {"uniform": "of uniform width", "random": "drawn at random"}
    parts = ", ".join(f"{counts[name]} {by.get(name, f'asked for by {name}')}" for name in run.searchers())
    told += (
        f", {count(len(run.seen), 'sub-net')} {'was' if len(run.seen) == 1 else 'were'} evaluated ({parts})"
    )
    if run.front:
        told += f" and {len(run.front)} of them form the Pareto front"
    if run.chosen and "macs" in run.chosen[0].costs and run.full.get("macs"):
        told += _smallest(run, run.chosen[0])
    return f"{told}."


def notes(run: RunView) -> list[str]:
    """What a reader must know before believing the rest."""
    told = []
    if run.failures:
        most = Counter(run.failures).most_common(3)
        reasons = "; ".join(f"{reason or 'no reason given'} ({times})" for reason, times in most)
        told.append(f"{count(len(run.failures), 'evaluation')} failed: {reasons}.")
    if run.stopped:
        spent, full = run.images
        told.append(
            f"Racing: {count(run.stopped, 'sub-net')} more {'was' if run.stopped == 1 else 'were'} looked at only in "
            "part, until the images seen showed that another one is better and costs no more; figures leave them "
            f"out. All evaluations together cost {spent:,} images, those that set batch norms included, instead of "
            f"{full:,} ({100 * spent / full:.0f} %)."
        )
    if run.left_out:
        others = count(run.left_out, "evaluation")
        told.append(f"Left out: {others} in the journal made with other weights, data or protocol.")
    if run.chosen and not any(chosen.after for chosen in run.chosen):
        told.append("The chosen sub-nets have not been fine-tuned yet.")
    if run.front_state != "complete":
        still = run.front_state == "searching"
        told.append(
            f"The search {'is not over' if still else 'was cut short'}: more evaluations may move the front."
        )
    less = [row for row in run.plan.get("stages", ()) if row.get("amount", 0) < row.get("asked", 0)]
    if less:
        parts = (f"{row['stage']} {row['amount']:,} of {row['asked']:,} {row['unit']}" for row in less)
        told.append(f"Time was limited, so less was done than the recipe asks for: {', '.join(parts)}.")
    told += [
        f"{name} of {chosen.label} was not measured after fine-tuning: {reason}."
        for chosen in run.chosen
        for name, reason in chosen.failed.items()
    ]
    failed = [chosen.label for chosen in run.chosen if chosen.proof and not chosen.proof.get("passed")]
    if failed:
        told.append(f"The proof of {', '.join(failed)} failed: do not use these files.")
    if run.damaged:
        told.append(f"Changed after being written, do not use: {', '.join(run.damaged)}.")
    return told


def coverage(run: RunView) -> dict[str, Any] | None:
    """What is elastic, and what is not by reason; None before the network was converted."""
    table = run.coverage
    if not table:
        return None
    groups, blocks = table.get("groups", ()), table.get("blocks", ())
    told = f"{count(len(groups), 'width knob')} and {count(len(blocks), 'skippable block')}"
    if heights := table.get("resolution", ()):
        told += f" and images of {', '.join(map(str, heights))} pixels"
    if "freedoms" in table:
        told += f" ({', '.join(table['freedoms'])})"
    if run.space:
        told += f" span {magnitude(run.space.size)} different sub-nets"
    if "reachable_macs_share" in table:
        share = 100 * table["reachable_macs_share"]
        told += f"; {share:.1f} % of the full net's MACs lie in layers that can shrink or be skipped"
    if "smallest" in table and "largest" in table:
        told += f". They reach from {_size(table['smallest'])} to {_size(table['largest'])}"
    if table.get("form") == "graph":
        told += f". Sub-nets run the graph of the network's operations; {table['training']}"
    reasons: dict[str, list[str]] = defaultdict(list)
    for entry in table.get("fixed", ()):
        reasons[entry["reason"]].append(entry["path"])
    return {
        "sentence": f"{told}.",
        "groups": groups,
        "blocks": [block["path"] for block in blocks],
        "fixed": sorted(reasons.items()),
    }


def facts(run: RunView) -> list[tuple[str, Rows]]:
    """Captions and rows: methods, device and versions, data and splits, seeds, time."""
    on_a_path = run.setting("search", "searcher") == "progressive"
    asked = (*METHODS, *METHODS_OF_A_PATH) if on_a_path else METHODS
    methods = [(what, str(run.setting(*where))) for what, *where in asked if run.setting(*where) is not None]
    if run.ranking.get("ranker", "best") != run.setting("rank", "ranker") == "best":
        methods = [
            (what, f"{run.ranking['ranker']}, the best of its slice curves" if what == "Ranking" else told)
            for what, told in methods
        ]
    settings = shlex.quote(f"runs/{run.name}/settings.toml")
    methods.append(("Repeat it all", f"subnet-search run {settings} --name again"))
    seeds = [("recipe", str(run.settings["seed"]))] if "seed" in run.settings else []
    for name, table in run.settings.items():
        if isinstance(table, Mapping) and "seed" in table and (on_a_path or name != "progressive"):
            seeds.append((f"[{name}]", str(table["seed"])))
    seeds += [(f"fine-tuning of {c.label}", ", ".join(map(str, c.seeds))) for c in run.chosen if c.seeds]
    parts: dict[str, Rows] = {
        "Method": methods,
        "Device and versions": _flat(run.device),
        "Data and splits": _flat(run.splits),
        **({"Time plan": plan} if (plan := _plan(run)) else {}),
        "Seeds": seeds,
        "Time": _times(run),
    }
    return [(caption, rows or [("not recorded", "yet")]) for caption, rows in parts.items()]


def _smallest(run: RunView, best: Chosen) -> str:
    """How small and how good the smallest chosen sub-net is, on test if that was looked at."""
    share = 100 * best.costs["macs"] / run.full["macs"]
    told = f"; of {count(len(run.chosen), 'chosen sub-net')}, {best.label} needs {share:.1f} %"
    told += f" of the full net's {text('macs', run.full['macs'])}"
    name = "top1_percent"
    for split, mine, theirs in (
        ("test", best.test, run.full_test),
        ("search-validation", {**best.before, **best.after}, run.full),
    ):
        if name in mine:
            told += f" and reaches {text(name, mine[name])} top-1 on {split}"
            return told + (f" (full net: {text(name, theirs[name])})" if name in theirs else "")
    return told


def _plan(run: RunView) -> Rows:
    """What a time budget left of each stage; nothing where there was none."""
    stages = [row for row in run.plan.get("stages", ()) if "amount" in row]
    minutes = run.plan.get("minutes")
    if minutes is None and all(row["amount"] == row["asked"] for row in stages):
        return []
    budget = [("last budget", f"{minutes:g} minutes")] if minutes is not None else []
    return budget + [
        (row["stage"], f"{row['amount']:,} of {row['asked']:,} {row['unit']}")
        for row in stages
        if row["asked"]
    ]


def _times(run: RunView) -> Rows:
    stamps = [event["time"] for event in run.events if "time" in event]
    rows = [("Begun", _date(stamp)) for stamp in stamps[:1]]
    rows += [("Last event", _date(stamp)) for stamp in stamps[-1:]]
    stages: dict[str, float] = defaultdict(float)
    for event in run.events:
        if event.get("kind") == "end" and "seconds" in event:
            stages[str(event.get("stage"))] += event["seconds"]
    return rows + [(stage, f"{seconds:,.1f} s") for stage, seconds in stages.items()]


def _date(time_s: float) -> str:
    """The date and time, for a clock that was right."""
    try:
        return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return f"{time_s:.0f} s after 1970, says the clock of that machine"


def _size(end: Mapping[str, int]) -> str:
    return f"{text('macs', end['macs'])} and {text('params', end['params'])} parameters"


def _flat(content: Mapping[str, Any], prefix: str = "") -> Rows:
    """Nested JSON as rows of dotted names and texts."""
    rows: Rows = []
    for name, value in content.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}".replace("_", " "), _told(value)))
    return rows


def _told(value: Any) -> str:
    """A value of JSON for people; of a long list, such as the names of 1,000 classes, the first few."""
    if not isinstance(value, list):
        return "none" if value is None or value == "" else str(value)
    more = f", … ({len(value):,} in all)" if len(value) > LONG else ""
    return ", ".join(map(str, value[:LONG])) + more or "none"
