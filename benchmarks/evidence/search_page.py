"""What is published of `benchmarks.evidence.search`: a page, the same numbers as JSON, and a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.evidence.published import RESULTS

FLOOR = "floor"
LEAST_SEEDS = 3  # of a mean that may be called the best
TABLES, SUPERNET, SETTINGS = "search.json", "search_supernet.json", "search_settings.json"
HEAD = """# Searchers

## On exhaustive tables

Hypervolume regret in percent: 1 - HV / HV of the true front, after so many *different* evaluations; the reference is
the largest cost and the smallest accuracy of the table. Mean over seeds, standard error in brackets; the best mean of a
column (of three seeds or more) in bold. Multiply-adds are known beforehand to every searcher that can use them;
milliseconds are measured: known of evaluated networks only. A searcher that proposes a network again is answered for
free; one that hardly proposes new ones is stopped after five asks for each evaluation, and keeps what it has found.
Milliseconds for each proposal are processor time of {cpu}, shared with other work.

*guided* is this project's searcher, with the settings that it has everywhere. Optuna's TPE is also there with
`multivariate=True` (it then knows knobs together), with knobs as categories and as *numbers*; by its own settings it
proposes known networks again and again. That form, and Optuna's GP, which takes a quarter of a second to a second for
each proposal, go on after 100 evaluations on their first seeds only, whose number is in square brackets; GP not on
merged codes, where it asks for known networks and a seed was not done after 40 minutes. *floor*: what a search would
reach that knew beforehand all that gradient boosting, fitted out of fold to the whole table, can tell: the fronts of
its predictions are evaluated one after the other. A search that learns from single answers can get below it.

Seeds from {first} on; the searcher's settings were chosen while looking at seeds 0 to 4 of these tables (warping, costs
as features, the gate, how spreads are corrected; that multiply-adds help to predict milliseconds), so the tables are
not new to it, only the seeds are. {seeds}

Made by `{command}` (resumable).
"""


def write_results(
    runs: Path, tables: Sequence[str], searchers: Sequence[str], seeds: range, command: str
) -> None:
    """Writes search.json and .png from the files below `runs`, and the page.

    Args:
        runs: holds a folder for each table.
        tables: those that are shown.
        searchers: likewise.
        seeds: that each searcher is to have.
        command: that made the files.
    """
    parts = {
        table: {
            name: {path.stem: json.loads(path.read_text("utf-8")) for path in files}
            for name in (*searchers, FLOOR)
            if (files := _files(runs / table / name.replace(" ", "-"), range(1) if name == FLOOR else seeds))
        }
        for table in tables
    }
    stored = {
        table: {name: _summary(list(each.values())) for name, each in found.items()}
        for table, found in parts.items()
    }
    about = {
        "command": command,
        "date": date.today().isoformat(),
        "cpu": _cpu(),
        "first": seeds.start,
        "seeds": _unfinished(stored, searchers, len(seeds)),
    }
    text = json.dumps({**about, "tables": stored, "parts": parts})
    (RESULTS / TABLES).write_text(text + "\n", "utf-8")
    _figure(stored).savefig(RESULTS / "search.png", dpi=110, bbox_inches="tight")
    write_page()


def write_page() -> None:
    """Writes search.md from what the scripts have left as JSON."""
    parts = []
    for name, section in ((TABLES, _tables), (SETTINGS, _settings), (SUPERNET, _supernet)):
        path = RESULTS / name
        if path.exists():
            parts.append(section(json.loads(path.read_text("utf-8"))))
    (RESULTS / "search.md").write_text("\n".join(parts), "utf-8")


def _unfinished(stored: Mapping[str, Any], searchers: Sequence[str], wanted: int) -> str:
    """How many seeds there are, and what is missing of those that were meant, for people."""
    rows = []
    for name in searchers:
        counts = [_seeds(one) if (one := found.get(name)) else 0 for found in stored.values()]
        if min(counts) < wanted:
            low, high = min(counts), max(counts)
            rows.append(f"{name} {low}" if low == high else f"{name} {low} to {high}")
    return (
        f"{wanted} seeds."
        if not rows
        else f"**Not finished**: of {wanted} seeds there are: {', '.join(rows)}."
    )


def _seeds(one: Mapping[str, Any]) -> int:
    """How many seeds a searcher has on a table."""
    return max(int(cell["seeds"]) for cell in one.values())


def _files(folder: Path, seeds: range) -> list[Path]:
    """One for each seed."""
    return sorted(path for path in folder.glob("*.json") if int(path.stem) in seeds)


def _summary(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """For each checkpoint the mean of the seeds that reached it, the standard error, their number, and seconds for each
    proposal.
    """
    counts = sorted(map(int, set.union(*(set(one["regret"]) for one in found))))
    summary = {}
    for count in map(str, counts):
        reached = [one for one in found if count in one["regret"]]
        regrets = np.array([one["regret"][count] for one in reached])
        seconds = [one["cpu_s"][count] for one in reached if "cpu_s" in one]
        error = float(regrets.std(ddof=1) / len(regrets) ** 0.5) if len(regrets) > 1 else float("nan")
        summary[count] = {
            "mean": max(float(regrets.mean()), 0.0),  # rounding apart
            "error": error if error == error else 0.0,
            "seeds": len(regrets),
            "seconds": float(np.mean(seconds)) / int(count) if seconds else 0.0,
        }
    return summary


def _tables(stored: dict[str, Any]) -> str:
    sections = [_section(table, found) for table, found in stored["tables"].items() if found]
    return HEAD.format(**stored) + "".join(sections)


def _settings(stored: dict[str, Any]) -> str:
    """What choosing the settings on other tables would have gained."""
    counts = stored["checkpoints"]
    rows = [
        "## What tuning would have gained\n",
        f"Settings of *guided* besides its own: {'; '.join(stored['variants'].values())}. For each table the variant "
        "that is best on all other tables (mean rank of the mean regrets at all budgets), beside the settings as they "
        f"are and the variant that is best on the table itself. Seeds {stored['seeds']}; mean regret in percent. Made "
        f"by `{stored['command']}`.\n",
        f"| table | settings | {' | '.join(map(str, counts))} |",
        "|---|---|" + "---|" * len(counts),
    ]
    for table, found in stored["tables"].items():
        for words, one in found.items():
            cells = " | ".join(f"{value:.3g}" for value in one["regret"])
            rows.append(f"| {table} | {words}: {one['variant']} | {cells} |")
    return "\n".join([*rows, ""])


def _supernet(stored: dict[str, Any]) -> str:
    """Hypervolume on trained supernets."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for part in stored["parts"]:
        by_name.setdefault(part["searcher"], []).append(part["reached"])
    counts = sorted({int(count) for parts in by_name.values() for part in parts for count in part})
    missing = [
        f"{name} on {len(by_name.get(name, []))}"
        for name in stored["searchers"]
        if len(by_name.get(name, [])) < len(stored["folders"])
    ]
    machine = stored["machine"]
    rows = [
        "## On a real supernet\n",
        f"Fashion-MNIST, ResNet-20 family, {len(stored['folders'])} supernets of other seeds (`fashion_mnist.md`): "
        f"hypervolume of what was truly evaluated on {stored['images']} search-validation images (batch norms set from "
        f"{stored['calibration']}), in percent of the box between chance and 100 % right, none and all of the "
        "multiply-adds; mean over supernets, standard error in brackets. With racing, sub-nets that were stopped are "
        "no part of the front; in square brackets the images spent, in percent of full evaluations. Made by "
        f"`{stored['command']}` on {machine['cpu']}, one thread.\n",
    ]
    if missing:
        rows.append(
            f"**Not finished**: of {len(stored['folders'])} supernets there are so far: {', '.join(missing)}.\n"
        )
    rows += [
        f"| searcher | supernets | {' | '.join(map(str, counts))} |",
        "|---|---|" + "---|" * len(counts),
    ]
    for name in stored["searchers"]:
        if parts := by_name.get(name):
            cells = " | ".join(_reached([part[str(c)] for part in parts if str(c) in part]) for c in counts)
            rows.append(f"| {name} | {len(parts)} | {cells} |")
    return "\n".join([*rows, ""])


def _reached(found: Sequence[dict[str, float]]) -> str:
    if not found:
        return ""
    volumes = np.array([one["hypervolume"] for one in found])
    error = f" ({volumes.std(ddof=1) / len(volumes) ** 0.5:.1g})" if len(volumes) > 1 else ""
    images = float(np.mean([one["images_percent"] for one in found]))
    return f"{volumes.mean():.2f}{error}" + (f" [{images:.0f} %]" if images < 100 else "")


def _section(table: str, found: dict[str, Any]) -> str:
    counts = sorted({int(count) for one in found.values() for count in one})
    rivals = {name: one for name, one in found.items() if name != FLOOR}
    best = {
        count: min((one[str(count)]["mean"] for one in rivals.values() if _counts(one, count)), default=-1.0)
        for count in counts
    }
    rows = [
        f"\n### {table}\n",
        "| searcher | seeds | " + " | ".join(map(str, counts)) + " | ms for each proposal |",
        "|---|---|" + "---|" * (len(counts) + 1),
    ]
    for name, one in found.items():
        cells = []
        for count in counts:
            cell = one.get(str(count))
            error = f" ({cell['error']:.1g})" if cell and cell["seeds"] > 1 else ""
            fewer = f" [{cell['seeds']}]" if cell and cell["seeds"] < _seeds(one) else ""
            text = "" if cell is None else f"{cell['mean']:.3g}{error}{fewer}"
            wins = name != FLOOR and _counts(one, count) and one[str(count)]["mean"] == best[count]
            cells.append(f"**{text}**" if wins else text)
        last = one[max(one, key=int)]
        seeds = "" if name == FLOOR else str(_seeds(one))
        time = "" if name == FLOOR else f"{1000 * last['seconds']:.3g}"
        rows.append(f"| {name} | {seeds} | " + " | ".join(cells) + f" | {time} |")
    return "\n".join(rows) + "\n"


def _counts(one: dict[str, Any], count: int) -> bool:
    """Whether a mean is of enough seeds to be called the best."""
    return str(count) in one and one[str(count)]["seeds"] >= LEAST_SEEDS


def _figure(stored: dict[str, Any]) -> Figure:
    shown = {table: found for table, found in stored.items() if found}
    columns = min(3, max(1, len(shown)))
    rows = -(-max(1, len(shown)) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    names = list(dict.fromkeys(name for found in shown.values() for name in found))
    for axis, (table, found) in zip(axes, shown.items(), strict=False):
        for name, one in found.items():
            counts = sorted(map(int, one))
            means = [max(one[str(count)]["mean"], 1e-3) for count in counts]
            style = (
                {"color": "black", "linestyle": ":"} if name == FLOOR else {"color": f"C{names.index(name)}"}
            )
            width = 2.5 if name == names[0] else 1.2
            axis.plot(counts, means, label=name, linewidth=width, marker=".", **style)
        axis.set(title=table, xscale="log", yscale="log")
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.minorticks_off()
    for axis in axes[len(shown) :]:
        axis.axis("off")
    for axis in axes[: len(shown)][-columns:]:
        axis.set_xlabel("different evaluations")
    figure.supylabel("hypervolume regret, percent")
    if shown:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize="small")
    return figure


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"
