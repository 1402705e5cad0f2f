"""Searchers on trained supernets: how much hypervolume the sub-nets they evaluated truly have.

What a sub-net answers is found out once for each supernet and kept in runs/search_supernet, whichever searcher asks;
each (supernet, searcher) is one file there, so a broken-off call goes on.
"""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.published import RESULTS
from benchmarks.evidence.search_page import write_page
from search_spaces import CostTable, SearchSpace, SubnetConfig, config_to_json
from subnet_search.batches import first_images
from subnet_search.measure import describe_device, make_evaluator
from subnet_search.recipe import parse_recipe
from subnet_search.record import Evaluation, Objective, ParetoFront, Partial, open_run
from subnet_search.searchers import Racing, Searcher, look_sizes, make_searcher
from subnet_search.searchers.candidates import Candidates
from subnet_search.searchers.feasible import Feasible
from subnet_search.searchers.racing import RacedEvaluator, race
from subnet_search.settings import EvaluateSettings
from subnet_search.workbench import Workbench, set_up_process

COMMAND = "python -m benchmarks.evidence.search_supernet"
RUNS = Path("runs")
KEPT = RUNS / "search_supernet"
FOLDERS = tuple(f"fashion-seed{seed}" for seed in (20, 21, 22))
OBJECTIVES = (Objective("top1_percent", "max"), Objective("macs", "min"))
CHECKPOINTS = (50, 100, 200)
IMAGES, CALIBRATION = 2_000, 512
CHANCE_PERCENT = 10.0
POOL = 4_000  # sub-nets of all sizes, from which the cost-aware control draws
GUIDED, RACED, COST_AWARE = "guided", "guided, racing", "cost-aware random"
SEARCHERS = (GUIDED, RACED, "random", COST_AWARE, "nsga2", "tpe")


class Answers:
    """Which images every sub-net of one supernet answers right; asked once for each."""

    objectives = OBJECTIVES

    def __init__(self, name: str) -> None:
        KEPT.mkdir(parents=True, exist_ok=True)
        with open_run(RUNS / name, write=False) as run:
            self._bench = Workbench(run, parse_recipe(run.read("settings.toml").decode(), name), print)
            set_up_process(self._bench.recipe)
            self.space: SearchSpace = self._bench.space
            self.costs: CostTable = self._bench.costs
            self._evaluate = _fewer_images(self._bench)
        self.seed = self._bench.recipe.seed
        self._file = KEPT / f"{name}-answers.jsonl"
        lines = self._file.read_text("utf-8").splitlines() if self._file.exists() else []
        whole = [json.loads(line) for line in lines if line.endswith("}")]
        self._right = {line["key"]: _unpacked(line["right"]) for line in whole}

    def right(self, config: SubnetConfig) -> np.ndarray:
        """Booleans `[num_images]`."""
        if config.key not in self._right:
            images = race(self._evaluate, config, (), Racing()).images  # nobody to lose against
            assert images is not None
            self._right[config.key] = images.answers()
            packed = base64.b64encode(images.right).decode()
            with self._file.open("a", encoding="utf-8") as file:
                file.write(
                    json.dumps({"key": config.key, "config": config_to_json(config), "right": packed}) + "\n"
                )
        return self._right[config.key]

    def stages(self, config: SubnetConfig) -> Generator[Partial]:
        """As `RacedEvaluator.stages`."""
        right, macs = self.right(config), float(self.costs.macs(self.space.encode([config]))[0])
        order = np.random.default_rng([self.seed, *config.key.encode()]).permutation(len(right))
        for size in look_sizes(len(right)):
            images = order[:size]
            values = 100 * float(right[images].mean()), macs
            yield Partial(right[images], images, len(right), CALIBRATION, values)

    def __call__(self, config: SubnetConfig) -> Evaluation:
        """All images."""
        return race(self, config, (), Racing())

    def hypervolume(self, evaluations: list[Evaluation]) -> float:
        """In percent of the box between chance and 100 % right, none and all of the multiply-adds."""
        most = float(self.costs.macs(self.space.encode([self.space.largest()]))[0])
        front = ParetoFront.of(OBJECTIVES, evaluations)
        reference = {"top1_percent": CHANCE_PERCENT, "macs": most}
        return 100 * front.hypervolume(reference) / ((100 - CHANCE_PERCENT) * most)


def _unpacked(packed: str) -> np.ndarray:
    return np.unpackbits(np.frombuffer(base64.b64decode(packed), np.uint8), count=IMAGES).astype(bool)


def _fewer_images(bench: Workbench) -> RacedEvaluator:
    """The run's own evaluator, on the first search-validation images only."""
    seed, splits = bench.recipe.seed, bench.splits
    fewer = replace(splits, search_val=first_images(splits.search_val, IMAGES, seed))
    settings = EvaluateSettings(
        calibration_images=CALIBRATION, seed=seed, device=bench.recipe.evaluate.device
    )
    return make_evaluator(bench.supernet, fewer, ("top1_percent", "macs"), settings)


class CostAware:
    """Draws a number of multiply-adds, evenly between the least and the most, and takes the nearest new sub-net."""

    def __init__(self, space: SearchSpace, costs: CostTable, seed: int) -> None:
        self._rng, self._space = np.random.default_rng(seed), space
        self._rows = Candidates(Feasible(space)).random(POOL, self._rng)
        self._macs = costs.macs(self._rows).astype(float)

    def ask(self) -> SubnetConfig:
        """One that was not asked for before."""
        target = self._rng.uniform(self._macs.min(), self._macs.max())
        pick = int(np.argmin(np.abs(self._macs - target)))
        config = self._space.decode(self._rows[pick : pick + 1])[0]
        self._rows, self._macs = np.delete(self._rows, pick, axis=0), np.delete(self._macs, pick)
        return config

    def tell(self, evaluation: Evaluation) -> None:
        """Learns nothing."""


def searcher_of(name: str, answers: Answers) -> Searcher:
    if name == COST_AWARE:
        return CostAware(answers.space, answers.costs, answers.seed)
    kind = GUIDED if name == RACED else name
    return make_searcher(kind, answers.space, OBJECTIVES, seed=answers.seed, costs=answers.costs)


def measure(answers: Answers, name: str, budget: int) -> dict[str, Any]:
    """Hypervolume and images spent at each checkpoint."""
    searcher, found = searcher_of(name, answers), list[Evaluation]()
    reached: dict[str, Any] = {}
    for count in range(1, budget + 1):
        config = searcher.ask()
        evaluation = race(answers, config, found, Racing()) if name == RACED else answers(config)
        found.append(evaluation)
        searcher.tell(evaluation)
        if count in CHECKPOINTS:
            counted = [e.images for e in found if e.images is not None]
            reached[str(count)] = {
                "hypervolume": answers.hypervolume(found),
                "stopped": sum(not e.in_full for e in found),
                "images_percent": 100 * sum(i.spent for i in counted) / sum(i.in_full_spent for i in counted),
            }
    return {"budget": budget, "reached": reached}


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--folders", nargs="+", default=list(FOLDERS), help="of runs with a trained supernet")
    parser.add_argument("--searchers", nargs="+", default=list(SEARCHERS), choices=SEARCHERS)
    parser.add_argument("--budget", type=int, default=CHECKPOINTS[-1])
    parser.add_argument("--page", action="store_true", help="only write the page from what is there")
    args = parser.parse_args()
    for folder in () if args.page else args.folders:
        answers: Answers | None = None
        for name in args.searchers:
            path = KEPT / f"{folder}-{name.replace(', ', '-').replace(' ', '-')}.json"
            if path.exists() and json.loads(path.read_text("utf-8"))["budget"] >= args.budget:
                continue
            answers = answers or Answers(folder)
            found = {"folder": folder, "searcher": name, **measure(answers, name, args.budget)}
            path.write_text(json.dumps(found) + "\n", "utf-8")
            print(
                folder,
                name,
                {k: round(v["hypervolume"], 3) for k, v in found["reached"].items()},
                flush=True,
            )
            write()
    write()


def write() -> None:
    """Everything that is there, as JSON, and the page anew."""
    KEPT.mkdir(parents=True, exist_ok=True)
    parts = [json.loads(path.read_text("utf-8")) for path in sorted(KEPT.glob("*.json"))]
    stored = {
        "command": COMMAND,
        "machine": describe_device(),
        "images": IMAGES,
        "calibration": CALIBRATION,
        "folders": list(FOLDERS),
        "searchers": list(SEARCHERS),
        "parts": parts,
    }
    (RESULTS / "search_supernet.json").write_text(json.dumps(stored, indent=1) + "\n", "utf-8")
    write_page()


if __name__ == "__main__":
    main()
