"""What is published of `benchmarks.evidence.search`: a page, the same numbers as JSON, and a figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

RESULTS = Path(__file__).parents[2] / "reports" / "results"
FLOOR = "floor"
HEAD = """# Searchers on exhaustive tables

Hypervolume regret in percent: 1 - HV / HV of the true front, after so many *different* evaluations; the reference is
the largest cost and the smallest accuracy of the table. Mean over seeds, standard error in brackets; the best mean of a
column in bold. Multiply-adds are known beforehand to every searcher that can use them; milliseconds are measured: known
of evaluated networks only. A searcher that proposes a network again is answered for free; one that hardly proposes new
ones is stopped after five asks for each evaluation, and keeps what it has found. Milliseconds for each proposal are
processor time of {cpu}, shared with other work.

*guided* is this project's searcher, with the settings that it has everywhere. *floor*: what a search would reach that
knew beforehand all that gradient boosting, fitted out of fold to the whole table, can tell: the fronts of its
predictions are evaluated one after the other. A search that learns from single answers can get below it.

Three seeds or five and 200 evaluations so far: differences smaller than two standard errors say nothing. Not
independent of these tables: warping, costs as features, the gate and how spreads are corrected were chosen
while looking at the first seeds of nas-bench-macro and nas-bench-201; the other settings are the first that were
written down. What leaving one table out would say was not measured, and Optuna's GP sampler (`--searchers "Optuna GP"`)
was not run.

Made by `{command} --budget 200 --seeds 3` (resumable).
"""


def write_results(runs: Path, tables: Sequence[str], searchers: Sequence[str], command: str) -> None:
    """Writes search.md, .json and .png from the files below `runs`."""
    stored = {
        table: {
            name: _summary([json.loads(path.read_text("utf-8")) for path in files])
            for name in (*searchers, FLOOR)
            if (files := sorted((runs / table / name.replace(" ", "-")).glob("*.json")))
        }
        for table in tables
    }
    about = {"command": command, "date": date.today().isoformat(), "cpu": _cpu()}
    text = json.dumps({**about, "tables": stored}, indent=1)
    (RESULTS / "search.json").write_text(text + "\n", "utf-8")
    (RESULTS / "search.md").write_text(_page(stored, about), "utf-8")
    _figure(stored).savefig(RESULTS / "search.png", dpi=110, bbox_inches="tight")


def _summary(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """For each checkpoint the mean, the standard error, the number of seeds, and seconds for each proposal."""
    counts = sorted({int(count) for one in found for count in one["regret"]})
    summary = {}
    for count in map(str, counts):
        regrets = np.array([one["regret"][count] for one in found if count in one["regret"]])
        seconds = [one["cpu_s"][count] for one in found if count in one.get("cpu_s", {})]
        error = float(regrets.std(ddof=1) / len(regrets) ** 0.5) if len(regrets) > 1 else float("nan")
        summary[count] = {
            "mean": float(regrets.mean()),
            "error": error if error == error else 0.0,
            "seeds": len(regrets),
            "seconds": float(np.mean(seconds)) / int(count) if seconds else 0.0,
        }
    return summary


def _page(stored: dict[str, Any], about: dict[str, str]) -> str:
    return HEAD.format(**about) + "".join(_section(table, found) for table, found in stored.items() if found)


def _section(table: str, found: dict[str, Any]) -> str:
    counts = sorted({int(count) for one in found.values() for count in one})
    rivals = {name: one for name, one in found.items() if name != FLOOR}
    best = {
        count: min((one[str(count)]["mean"] for one in rivals.values() if str(count) in one), default=0.0)
        for count in counts
    }
    rows = [
        f"\n## {table}\n",
        "| searcher | seeds | " + " | ".join(map(str, counts)) + " | ms for each proposal |",
        "|---|---|" + "---|" * (len(counts) + 1),
    ]
    for name, one in found.items():
        cells = []
        for count in counts:
            cell = one.get(str(count))
            text = "" if cell is None else f"{cell['mean']:.3g} ({cell['error']:.1g})"
            cells.append(f"**{text}**" if cell and name != FLOOR and cell["mean"] == best[count] else text)
        last = one[max(one, key=int)]
        seeds = "" if name == FLOOR else str(last["seeds"])
        time = "" if name == FLOOR else f"{1000 * last['seconds']:.3g}"
        rows.append(f"| {name} | {seeds} | " + " | ".join(cells) + f" | {time} |")
    return "\n".join(rows) + "\n"


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
