"""What choosing the guided searcher's settings on other tables would have gained: leave one table out.

Each (table, variant, seed) is one file below runs/search_settings, so a broken-off call goes on. The seeds are those
on which settings may be looked at; the published comparison (`benchmarks.evidence.search`) has others.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
from scipy.stats import rankdata

from benchmarks.evidence.published import RESULTS
from benchmarks.evidence.search import SHOWN, measure
from benchmarks.evidence.search_page import write_page
from benchmarks.tables import TABLES, Table
from predictors import accuracy
from subnet_search.searchers import guided, screening

COMMAND = "python -m benchmarks.evidence.search_settings"
RUNS = Path("runs") / "search_settings"
CHECKPOINTS = (25, 50, 100)
OWN = "as they are"
VARIANTS: Mapping[str, tuple[ModuleType, Mapping[str, Any]]] = {
    OWN: (guided, {}),
    "start of 20": (guided, {"START": 20}),
    "batches of a tenth": (guided, {"BATCH_SHARE": 10}),
    "shortlist of 300": (screening, {"SHORTLIST": 300}),
    "chosen and tuned less often": (guided, {"CHOOSE_AGAIN": 2.0, "TUNE_AGAIN": 1.5}),
    "spreads never narrowed": (accuracy, {"SCALES": (1.0, 3.0)}),
    "spreads never widened": (accuracy, {"SCALES": (0.3, 1.0)}),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on; at most 5")
    parser.add_argument("--page", action="store_true", help="only write the page from what is there")
    args = parser.parse_args()
    for seed in range(0 if args.page else args.seeds):
        for name in SHOWN:
            table: Table | None = None
            for variant, (module, settings) in VARIANTS.items():
                path = _path(name, variant, seed)
                if path.exists():
                    continue
                table = table or TABLES[name]()
                with ExitStack() as stack:
                    for setting, value in settings.items():
                        stack.enter_context(mock.patch.object(module, setting, value))
                    found = measure(table, "guided", seed, CHECKPOINTS[-1])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(found) + "\n", "utf-8")
                print(name, variant, seed, {k: round(v, 3) for k, v in found["regret"].items()}, flush=True)
    write(args.seeds)


def _path(table: str, variant: str, seed: int) -> Path:
    return RUNS / table / variant.replace(" ", "-") / f"{seed}.json"


def write(seeds: int) -> None:
    """The seeds that are there for all tables and variants, as JSON, and the page anew."""
    done = [s for s in range(seeds) if all(_path(t, v, s).exists() for t in SHOWN for v in VARIANTS)]
    if not done:
        print("not one seed is there for all tables and variants: nothing is published")
        return
    means = np.array([[_mean(table, variant, done) for variant in VARIANTS] for table in SHOWN])
    stored = {
        "command": COMMAND,
        "seeds": f"{done[0]} to {done[-1]}",
        "checkpoints": CHECKPOINTS,
        "variants": {
            name: f"{name} ({_changed(settings)})" for name, (_, settings) in VARIANTS.items() if name != OWN
        },
        "tables": {table: _choices(means, place) for place, table in enumerate(SHOWN)},
        "all": {table: dict(zip(VARIANTS, means[i].tolist(), strict=True)) for i, table in enumerate(SHOWN)},
    }
    (RESULTS / "search_settings.json").write_text(json.dumps(stored, indent=1) + "\n", "utf-8")
    write_page()


def _changed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in settings.items())


def _mean(table: str, variant: str, seeds: list[int]) -> list[float]:
    found = [json.loads(_path(table, variant, seed).read_text("utf-8"))["regret"] for seed in seeds]
    return [float(np.mean([one[str(count)] for one in found])) for count in CHECKPOINTS]


def _choices(means: np.ndarray, place: int) -> dict[str, dict[str, Any]]:
    """Settings as they are, best on the others, and best on the table itself.

    Args:
        means: `[num_tables, num_variants, num_checkpoints]`.
        place: of the table.
    """
    ranks = rankdata(means, axis=1).mean(axis=2)  # [num_tables, num_variants]
    others = int(np.delete(ranks, place, axis=0).mean(axis=0).argmin())
    picks = {"own": 0, "best on the others": others, "best here": int(ranks[place].argmin())}
    names = list(VARIANTS)
    return {
        words: {"variant": names[pick], "regret": means[place, pick].tolist()}
        for words, pick in picks.items()
    }


if __name__ == "__main__":
    main()
