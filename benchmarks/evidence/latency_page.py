"""reports/results/latency.md and .json, from what was run of three parts; each part has its own command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.evidence.latency_judged import judged
from benchmarks.evidence.latency_searched import search_text, searched
from benchmarks.evidence.latency_tabled import tabled
from subnet_search.record.atomic import write_whole

RESULTS = Path("reports") / "results"
RUNS = Path("runs") / "latency"
COMMANDS = {
    "cpu": "python -m benchmarks.evidence.latency",
    "tables": "python -m benchmarks.evidence.latency_tables",
    "search": "python -m benchmarks.evidence.latency_search",
}
COPIES = ("copy, scaled", "copy, scaled and shifted")
HEAD = """# Latency: predictors and the target device

A predictor of one device's latency (`predictors/latency.py`) is a Gaussian process whose covariance is a block table at
several depths (whole net, layers, choices that knobs share) and a residual; `predictors/transfer.py` puts a blend of
other devices before it. Three parts, each made by a command of its own, which goes on where it was broken off; the page
holds what has been run.
"""


def write_page() -> str:
    """Writes page and numbers from what is below runs/latency, and returns the page."""
    path = RESULTS / "latency.json"
    stored: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    found = {"cpu": judged(RUNS), "tables": tabled(RUNS / "tables"), "search": searched(RUNS / "search")}
    kept = {name: part or stored.get(name) for name, part in found.items()}
    numbers = {"commands": COMMANDS, "date": date.today().isoformat(), **kept}
    page = as_page(numbers)
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(numbers, indent=1) + "\n").encode())
    write_whole(path.with_suffix(".md"), page.encode())
    return page


def as_page(numbers: Mapping[str, Any]) -> str:
    """The page, from the numbers alone."""
    missing = [f"part {i} (`{COMMANDS[name]}`)" for i, name in enumerate(COMMANDS, 1) if not numbers[name]]
    parts = [HEAD]
    if missing:
        parts.append(f"**Not run yet**: {', '.join(missing)}.\n")
    if numbers["cpu"]:
        parts.append(_cpu(numbers["cpu"]))
    if numbers["tables"]:
        parts += [_learning(numbers["tables"]), _transfer(numbers["tables"])]
    if numbers["search"]:
        parts.append(search_text(numbers["search"], COMMANDS["search"]))
    return "\n".join([*parts, f"{numbers['date']}.\n"])


def _cpu(part: Mapping[str, Any]) -> str:
    rows = [
        "## 1. Sixty measured sub-nets, a hundred others\n",
        f"`{COMMANDS['cpu']}`, seed 0, random weights, 224 px, batch 1, one thread. Both kinds of sub-nets are drawn "
        "alike, from the smallest sizes to the largest, and measured in mixed order, each in all runtimes before the "
        "next; ONNX Runtime and OpenVINO read the same ONNX file. MACs: a straight line through the "
        "same measured nets. Repeat: some of the judged nets measured once more at the "
        "end, which shows how far two measurements of one net are apart. Coverage is of 90 % intervals.\n",
        "| network | runtime | learnt, judged | ms | within 10 %, % | MACs | repeat | Kendall's tau | MACs | repeat | "
        "coverage, % | mean error, % | MACs | repeat | rejected |",
        "|" + "---|" * 15,
    ]
    for one in part["runs"]:
        ours, macs, again = one["ours"], one["macs"], one["again"]
        cells = [one["model"], one["runtime"], f"{one['learnt']}, {one['judged']}"]
        cells.append(f"{one['least_ms']:.3g} to {one['most_ms']:.3g}")
        for name, factor, form in (("within", 100, ".0f"), ("tau", 1, ".3f")):
            cells += [_cell(found, name, factor, form) for found in (ours, macs, again)]
        cells.append(_cell(ours, "coverage", 100, ".0f"))
        cells += [_cell(found, "error", 1, ".2f") for found in (ours, macs, again)]
        rows.append(f"| {' | '.join([*cells, str(one['rejected'])])} |")
    unfinished = [f"{one['model']} in {one['runtime']}" for one in part["runs"] if not one["finished"]]
    if unfinished:
        rows.append(f"\n**Not finished**: {', '.join(unfinished)}.")
    machine = part["machine"]
    rows.append(
        f"\n{machine['cpu']}, {machine['os']}, Python {machine['python']}, torch {machine['torch']}.\n"
    )
    return "\n".join(rows)


def _cell(found: Mapping[str, float] | None, name: str, factor: float, form: str) -> str:
    return "-" if found is None else format(factor * found[name], form)


def _learning(part: Mapping[str, Any]) -> str:
    rows = [
        "## 2. Tables of 54 device settings\n",
        f"`{COMMANDS['tables']}`, seeds {part['seeds']}, one split of each table ({part['split']}). Errors are mean "
        "|predicted - measured| in percent of the mean measured. *Excess*: error less that of the same family after "
        "learning from all 2,000 training rows (the floor). Ours, knobs: sees what ridge and the GP (both on "
        "one-hot columns) see. Ours, costs: also what each layer costs. Planned: it chose its rows itself. Ridge with "
        "costs is a control: what the features bring without our model. Developed on the devices named below with "
        "other seeds and splits; knobs for nas-bench-201 and costs for fbnet were chosen there. *New*: the other "
        "devices.\n",
    ]
    rows += [_beside_rivals(table, one) for table, one in part["learning"].items()]
    for table, one in part["learning"].items():
        rows += [
            f"### {table}: {one['devices']} device settings, {one['new_devices']} of them new\n",
            "| rows | "
            + " | ".join(one["methods"])
            + " | excess of ours / better of ridge, gp | new only | devices halved |"
            " clearly worse |",
            "|" + "---|" * (len(one["methods"]) + 5),
        ]
        for size, row in one["sizes"].items():
            errors = [
                f"{row['error'][m]:.2f} ({row['excess'][m]:.2f})" if m in row["error"] else "-"
                for m in one["methods"]
            ]
            tail = [f"{row['ratio']:.2f}", f"{row['ratio_new']:.2f}", f"{row['halved']} of {one['devices']}"]
            rows.append(f"| {size} | {' | '.join([*errors, *tail, str(row['worse'])])} |")
        rows += [
            f'\nMean error (excess). Ours is "{one["ours"]}". Floor: '
            + ", ".join(f"{name} {value:.2f}" for name, value in one["floor"].items())
            + f". Coverage of its 90 % intervals: {one['coverage']}. Clearly worse: devices whose excess is larger "
            "than the better rival's by more than two standard errors over seeds and 0.02 points. Development: "
            + ", ".join(one["development"])
            + ".\n",
        ]
    return "\n".join(rows)


def _beside_rivals(table: str, one: Mapping[str, Any]) -> str:
    """What the table of errors says: how much of the rivals' excess is left, and where ours is clearly worse."""
    sizes = one["sizes"]
    shares = ", ".join(f"{100 * row['ratio']:.0f} % at {size}" for size, row in sizes.items())
    worse = "; ".join(
        f"{', '.join(row['worse_devices'])} at {size}" for size, row in sizes.items() if row["worse"]
    )
    told = f"**{table}**: of the better rival's mean excess ours has {shares} rows. "
    return f"{told}Clearly worse than the better rival of a device: {worse or 'nowhere'}.\n"


def _beside_copies(table: str, sizes: Mapping[str, Any]) -> str:
    """What the table of transfer says, beside the better of both copies in each figure."""
    told = []
    for size, row in sizes.items():
        found = row["transfer"]
        mean, worst = (min(row[name][which] for name in COPIES) for which in ("mean", "worst"))
        told.append(
            f"{size} points: mean {found['mean']:.2f} against {mean:.2f}, worst device {found['worst']:.2f} "
            f"({found['device']}) against {worst:.2f}"
        )
    return f"**{table}**, transfer against the better copy: {'; '.join(told)}.\n"


def _transfer(part: Mapping[str, Any]) -> str:
    rows = [
        "### Transfer: the whole family of the device held out\n",
        "Families: NVIDIA GPUs, Xeon CPUs, phones, Raspberry Pi, FPGA, Eyeriss; the models of all devices of other "
        "families have learnt from all training rows. Copy: the device that fits the points best, its true times "
        "at the judged rows, scaled (or scaled and shifted). Alone: our predictor without other devices. Developed on "
        "some devices of nas-bench-201 with other seeds and splits; fbnet was not looked at.\n",
        *(_beside_copies(table, sizes) for table, sizes in part["transfer"].items()),
        "| table | points | "
        + " | ".join(f"{name}: mean, worst" for name in part["transfer_methods"])
        + " | others used, % |",
        "|" + "---|" * (len(part["transfer_methods"]) + 3),
    ]
    for table, sizes in part["transfer"].items():
        for size, row in sizes.items():
            cells = [
                f"{row[name]['mean']:.2f}, {row[name]['worst']:.2f}" for name in part["transfer_methods"]
            ]
            rows.append(f"| {table} | {size} | {' | '.join(cells)} | {100 * row['used']:.0f} |")
    rows.append("\nMeans over devices of means over seeds; worst: the device with the largest mean.\n")
    rows += ["| table | points | family | " + " | ".join(part["transfer_methods"]) + " |"]
    rows += ["|" + "---|" * (len(part["transfer_methods"]) + 3)]
    for table, sizes in part["by_family"].items():
        for size, families in sizes.items():
            for family, row in families.items():
                cells = [f"{row[name]:.2f}" for name in part["transfer_methods"]]
                rows.append(f"| {table} | {size} | {family} | {' | '.join(cells)} |")
    if part["missing"]:
        rows.append(
            f"\n**Not finished**: {part['missing']} of {part['wanted']} (device, seed) pairs are missing."
        )
    return "\n".join([*rows, ""])
