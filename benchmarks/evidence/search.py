"""Searchers on exhaustive tables: how much hypervolume is missing after so many different evaluations.

Each (table, searcher, seed) is one file below runs/search, so a broken-off call goes on. A searcher whose package is
not installed is named and left out; what another environment has left in runs/search counts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import KFold, cross_val_predict

from benchmarks.evidence.published import published, restore
from benchmarks.evidence.search_page import FLOOR, write_results
from benchmarks.rivals import PACKAGES, RIVALS, Losses
from benchmarks.tables import TABLES, Table
from search_spaces import SubnetConfig
from subnet_search.record import Evaluation, non_dominated
from subnet_search.searchers import SpaceExhausted

COMMAND = "python -m benchmarks.evidence.search"
CHECKPOINTS = (25, 50, 100, 200, 400)
RUNS = Path("runs") / "search"
SHOWN = (
    "macro-unmerged",
    "macro-merged",
    "201-cifar10-macs",
    "201-cifar100-macs",
    "201-cifar10-pixel3",
    "201-cifar100-gold_6226",
)
FIRST = 100  # seed; those below were looked at while settings were chosen
SEEDS_MEANT = 20
SHORT = 100  # evaluations, after which only so many seeds go on, as proposals take long
GO_ON = {"Optuna GP": 3}
STOPPED = {("macro-merged", "Optuna GP")}  # asks for known networks: 400 take over 40 minutes
REPEATS = 5  # asks for each evaluation, after which a searcher that keeps proposing known ones is stopped


class Enough(Exception):
    """The budget is spent."""


class Counter:
    """Looks configs up, repeats for free, and notes the regret at each checkpoint."""

    def __init__(self, table: Table, budget: int) -> None:
        self._table, self._budget = table, budget
        self._asks = 0
        self._found: dict[str, Evaluation] = {}
        self.regret: dict[str, float] = {}
        self.cpu_s: dict[str, float] = {}
        self.besides_s = 0.0
        self._start_s = time.process_time()

    def __call__(self, config: SubnetConfig) -> Losses:
        """The losses of a config; `Enough` when it was the last one."""
        start_s = time.process_time()
        self._asks += 1
        evaluation = self._found.get(config.key) or self._table.evaluate(config)
        self._found[config.key] = evaluation
        count = len(self._found)
        if count in CHECKPOINTS and str(count) not in self.regret:
            self.regret[str(count)] = self._table.regret(list(self._found.values()))
            self.cpu_s[str(count)] = start_s - self._start_s - self.besides_s
        if count >= self._budget or self._asks >= REPEATS * self._budget:
            raise Enough
        self.besides_s += time.process_time() - start_s
        return [o.loss(v) for o, v in zip(self._table.objectives, evaluation.values, strict=True)]

    def finish(self) -> None:
        """Fills in what was not reached because nothing new was proposed."""
        for count in (str(c) for c in CHECKPOINTS if c <= self._budget):
            if count not in self.regret:
                self.regret[count] = self._table.regret(list(self._found.values()))
                self.cpu_s[count] = time.process_time() - self._start_s - self.besides_s


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--tables", nargs="+", default=SHOWN, choices=list(TABLES))
    parser.add_argument("--searchers", nargs="+", default=list(RIVALS), choices=list(RIVALS))
    parser.add_argument("--seeds", type=int, default=SEEDS_MEANT, help=f"how many, from {FIRST} on")
    parser.add_argument("--budget", type=int, default=CHECKPOINTS[-1])
    parser.add_argument("--page", action="store_true", help="only write the page from what is there")
    args = parser.parse_args()
    restore(
        (RUNS / table / name.replace(" ", "-") / f"{seed}.json", content)
        for table, searchers in published("search").get("parts", {}).items()
        for name, seeds in searchers.items()
        for seed, content in seeds.items()
    )
    for name in args.searchers:
        if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
            print(f"{name} is left out: {PACKAGES[name]} is not installed", flush=True)
    for seed in range(FIRST, FIRST if args.page else FIRST + args.seeds):
        for table_name in args.tables:
            table: Table | None = None
            for name in args.searchers:
                path = RUNS / table_name / name.replace(" ", "-") / f"{seed}.json"
                absent = name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None
                goes_on = seed < FIRST + GO_ON.get(name, args.seeds) and (table_name, name) not in STOPPED
                budget = args.budget if goes_on else min(args.budget, SHORT)
                if absent or _done(path, budget):
                    continue
                table = table or TABLES[table_name]()
                found = measure(table, name, seed, budget)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(found) + "\n", "utf-8")
                print(
                    table_name, name, seed, {k: round(v, 3) for k, v in found["regret"].items()}, flush=True
                )
    for table_name in args.tables:
        path = RUNS / table_name / FLOOR / "0.json"
        if not path.exists() and not args.page:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"regret": floor(TABLES[table_name]())}) + "\n", "utf-8")
    write_results(RUNS, SHOWN, list(RIVALS), range(FIRST, FIRST + SEEDS_MEANT), COMMAND)


def _done(path: Path, budget: int) -> bool:
    return path.exists() and json.loads(path.read_text("utf-8"))["budget"] >= budget


def measure(table: Table, name: str, seed: int, budget: int) -> dict[str, Any]:
    """Regret in percent at each checkpoint, and CPU seconds of the searcher until there."""
    counter = Counter(table, budget)
    with suppress(Enough, SpaceExhausted):
        RIVALS[name](table, seed, counter)
    counter.finish()
    return {"budget": budget, "regret": counter.regret, "cpu_s": counter.cpu_s}


def floor(table: Table) -> dict[str, float]:
    """Regret in percent of evaluating the fronts of out-of-fold predictions, the first before the second."""
    knobs = table.space.knobs
    one_hot = np.concatenate(
        [table.rows[:, i : i + 1] == np.array(k.choices) for i, k in enumerate(knobs)], axis=1
    ).astype(float)
    folds = KFold(5, shuffle=True, random_state=0)
    predicted = np.stack(
        [
            objective.loss(1.0)
            * (
                objective.exact(table.rows)
                if objective.exact
                else cross_val_predict(
                    HistGradientBoostingRegressor(random_state=0), one_hot, values, cv=folds
                )
            )
            for objective, values in zip(table.objectives, table.values.T, strict=True)
        ],
        axis=1,
    )
    order: list[int] = []
    left = np.arange(len(predicted))
    while len(order) < CHECKPOINTS[-1]:
        front = left[non_dominated(predicted[left])]
        front = front[np.argsort(predicted[front, 0], kind="stable")]
        room = min(CHECKPOINTS[-1] - len(order), len(front))
        order += front[np.linspace(0, len(front) - 1, room).round().astype(int)].tolist()
        left = np.setdiff1d(left, front)
    evaluations = [table.evaluate(config) for config in table.space.decode(table.rows[order])]
    return {str(count): table.regret(evaluations[:count]) for count in CHECKPOINTS}


if __name__ == "__main__":
    main()
