"""Faults: runs broken on purpose in every way we know, gone on with, and compared with the unbroken run.

One group of faults after the other on a tiny run on digits; finished groups are kept, so a broken-off call goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.faults import clocks, damages, disks, evaluators, kills, recipes
from benchmarks.faults.road import Road, Row
from subnet_search.measure import describe_device

COMMAND = "python -m benchmarks.evidence.faults"
RESULTS = Path(__file__).parents[2] / "reports" / "results"
LONGEST_MESSAGE = 170
FUNCTIONS: tuple[Callable[[Road], list[Row]], ...] = (
    kills.kill_at_writes,
    kills.kill_at_times,
    kills.sigterm,
    kills.ctrl_c,
    kills.stopped_while_another_works,
    damages.torn_journal,
    damages.damaged_files,
    disks.full_disk,
    disks.full_disk_for_temporary_files,
    disks.read_only,
    evaluators.odd_metrics,
    evaluators.odd_evaluators,
    clocks.odd_clocks,
    clocks.files_of_the_future,
    recipes.mutated_recipes,
)
GROUPS = {function.__name__: function for function in FUNCTIONS}
HEAD = """# Faults

A tiny run on digits (small network, two epochs, 14 evaluations, two sub-nets), broken on purpose, then gone on with.
Each try happens at another moment, file or place, evenly spread over all there are. Exit codes: 0 done, 1 failed while
working, 2 refused, 130 Ctrl-C, 143 SIGTERM, negative: the signal that killed the process; "a, then b": of the broken
command, then of the one that went on. A run is equal to the unbroken one if all weights are equal bit by bit and all
records but for their times; after a damaged file also but for what a finished run needs no more (its last checkpoint,
statistics from before fine-tuning). A try was harmed if anything is not as it should be: another exit code, a
traceback, a message without the file or the way out, a run that is not equal to the unbroken one.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="NAME")
    parser.add_argument("--share", type=float, default=1.0, help="of the tries that are made; default: all")
    parser.add_argument("--again", action="store_true", help="also what is finished already")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the results")
    arguments = parser.parse_args()
    path = arguments.out / "faults.json"
    stored: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {"groups": {}}
    groups = stored["groups"]
    missing = [
        name
        for name in GROUPS
        if name in arguments.only
        and (arguments.again or name not in groups or groups[name]["share"] < arguments.share)
    ]
    if missing:
        with tempfile.TemporaryDirectory() as scratch:
            road = Road(Path(scratch), arguments.share)
            try:
                for name in missing:
                    groups[name] = one_group(name, road)
                    stored |= {"command": COMMAND, "date": date.today().isoformat()}
                    stored["machine"] = describe_device()
                    stored["groups"] = {name: groups[name] for name in GROUPS if name in groups}
                    path.write_text(json.dumps(stored, indent=1) + "\n", "utf-8")
            finally:
                road.close()
    page = as_page(stored)
    (arguments.out / "faults.md").write_text(page, "utf-8")
    print(page)
    if any(row["harm"] for group in groups.values() for row in group["rows"]):
        sys.exit(1)


def one_group(name: str, road: Road) -> dict[str, Any]:
    """Tries all faults of one function; with the share of tries and the time it took."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    start_s, cpu_s = time.monotonic(), _cpu_s()
    rows = [row.as_json() for row in GROUPS[name](road)]
    tries, harms = sum(row["tries"] for row in rows), [harm for row in rows for harm in row["harm"]]
    cpu_s, seconds = _cpu_s() - cpu_s, time.monotonic() - start_s
    print(f"{name}: {tries} tries, {len(harms)} harms, {seconds:.0f} s, {cpu_s:.0f} s CPU", file=sys.stderr)
    for harm in harms:
        print(f"  {harm}", file=sys.stderr, flush=True)
    return {"share": road.share, "cpu_seconds": round(cpu_s, 1), "rows": rows}


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def as_page(stored: dict[str, Any]) -> str:
    groups, machine = stored["groups"], stored["machine"]
    rows = [row for group in groups.values() for row in group["rows"]]
    harms = [f"- {row['fault']}, {row['where']}: {harm}" for row in rows for harm in row["harm"]]
    tries, harmed = sum(row["tries"] for row in rows), sum(row["harmed"] for row in rows)
    again, unequal = sum(row["resumed"] for row in rows), sum(row["unequal"] for row in rows)
    lines = [
        HEAD,
        f"**{tries} tries, {harmed} harmed**; of {again} that were compared with the unbroken run {again - unequal} "
        "are equal to it.",
        "",
        *([*harms, ""] if harms else []),
        "| fault | where | tries | exit codes (how often) | lost | equal to the unbroken run | a message |",
        "|---|---|---|---|---|---|---|",
        *(_as_line(row) for row in rows),
        "",
    ]
    left = [name for name in GROUPS if name not in groups]
    parts = {name: group["share"] for name, group in groups.items() if group["share"] != 1}
    if left:
        lines += [f"Not tried yet: {', '.join(left)}.", ""]
    if parts:
        lines += [f"Only a part of the tries: {', '.join(f'{n} ({s:g})' for n, s in parts.items())}.", ""]
    minutes = sum(group["cpu_seconds"] for group in groups.values()) / 60
    return "\n".join(
        [
            *lines,
            f"Made by `{stored['command']}` (resumable; `--share 0.1` tries a tenth), {minutes:.0f} minutes of one "
            "core.",
            "",
            f"{machine['cpu']}, {machine['os']}, Python {machine['python']}, torch {machine['torch']}, "
            f"{stored['date']}.",
            "",
        ]
    )


def _as_line(row: dict[str, Any]) -> str:
    codes = "; ".join(f"{code} ({number})" for code, number in row["codes"].items())
    equal = f"{row['resumed'] - row['unequal']} of {row['resumed']}" if row["resumed"] else ""
    cells = (row["fault"], row["where"], row["tries"], codes, row["lost"], equal, short_message(row["told"]))
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def short_message(told: str) -> str:
    """The first line of what a command said, without the folders of this try."""
    first = told.splitlines()[0] if told else ""
    first = re.sub(rf"{re.escape(tempfile.gettempdir() + os.sep)}[^\s/]+/(disk/|plain/)?(\w+/)?", "", first)
    return first if len(first) <= LONGEST_MESSAGE else first[:LONGEST_MESSAGE].rsplit(" ", 1)[0] + " ..."


if __name__ == "__main__":
    main()
