"""Measures the claims named on the command line, or all; prints them and writes reports/results/benchmarks.*."""

from __future__ import annotations

import argparse
import datetime
import json
import os
from pathlib import Path
from typing import Any

import torch

from benchmarks import (
    conversion,
    cost_table,
    distributed,
    evaluation,
    forward,
    quickstart,
    sandwich,
    searchers,
)
from benchmarks.figure import Figure
from subnet_search.measure import describe_device
from subnet_search.memory import keep_freed_memory

CLAIMS = {
    "cost_table": cost_table.measure,
    "conversion": conversion.measure,
    "forward": forward.measure,
    "sandwich": sandwich.measure,
    "evaluation": evaluation.measure,
    "quickstart": quickstart.measure,
    "searchers": searchers.measure,
    "distributed": distributed.measure,
}
RESULTS = Path(__file__).parent.parent / "reports" / "results"
HEAD = """# Benchmarks

Made by `make bench`, or `python -m benchmarks NAME ...` for some of {names}.
One thread; every figure is compared with its rival in one process, calls of both in random order, round by round. The
value is the median over the rounds, or over ten random configs of each one's median ratio; in brackets the lowest and
the highest. Times are wall times. Memory once freed is kept by the process (but for the quickstart), so that page
faults do not blur the ratios.

| claim | measured | aim | met | rival in the same run | ratio to it |
|---|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", default="all", choices=["all", *CLAIMS])
    names = parser.parse_args().names
    keep_freed_memory()  # two equal networks differ by several percent otherwise
    torch.set_num_threads(1)
    path = RESULTS / "benchmarks.json"
    stored: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for name in CLAIMS if "all" in names else names:
        began = {
            "command": f"python -m benchmarks {name}",
            "date": datetime.date.today().isoformat(),
            "load": round(os.getloadavg()[0], 2),
            "machine": describe_device(),
        }
        figures = CLAIMS[name]()
        stored[name] = {**began, "figures": [as_json(figure) for figure in figures]}
        for figure in figures:
            print(as_row(as_json(figure)), flush=True)
        stored = {name: stored[name] for name in CLAIMS if name in stored}
        path.write_text(json.dumps(stored, indent=1) + "\n", "utf-8")
        (RESULTS / "benchmarks.md").write_text(as_page(stored), "utf-8")


def as_json(figure: Figure) -> dict[str, Any]:
    return {
        "name": figure.name,
        "unit": figure.unit,
        "median": figure.median,
        "low": min(figure.samples),
        "high": max(figure.samples),
        "relation": figure.relation,
        "aim": figure.aim,
        "met": figure.met,
        "rival": figure.rival,
        "rival_value": figure.rival_value,
        "ratio": figure.ratio,
        "samples": list(figure.samples),
    }


def as_row(found: dict[str, Any]) -> str:
    unit = found["unit"]
    measured = f"{_number(found['median'])} {unit} ({_number(found['low'])} to {_number(found['high'])})"
    aim = f"{found['relation']} {_number(found['aim'])} {unit}"
    rival = found["rival"] if unit == "x" else f"{found['rival']}: {_number(found['rival_value'])} {unit}"
    met = "yes" if found["met"] else "**no**"
    return f"| {found['name']} | {measured} | {aim} | {met} | {rival} | {found['ratio']:,.3g} |"


def as_page(stored: dict[str, Any]) -> str:
    names = ", ".join(f"`{name}`" for name in CLAIMS)
    rows = [as_row(found) for claim in stored.values() for found in claim["figures"]]
    machines = {
        f"- {machine['cpu']}, {machine['cores']} cores, {machine['os']}, Python {machine['python']}, torch "
        f"{machine['torch']}, torchvision {machine['torchvision']}": None
        for machine in (claim["machine"] for claim in stored.values())
    }
    dates = [
        f"- {name}: {claim['date']}, load average {claim['load']} when begun"
        for name, claim in stored.items()
    ]
    return (
        HEAD.format(names=names)
        + "\n".join([*rows, "", "Machine and versions:", *machines, "", *dates])
        + "\n"
    )


def _number(value: float) -> str:
    return (
        f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 1 or value >= 10 else f"{value:.3f}"
    )


if __name__ == "__main__":
    main()
