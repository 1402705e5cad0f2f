"""When to rank: before the sandwich rule trains prefixes of the order, after it, both, or never.

One trained network per seed is shared by all arms; accuracies are on search-validation, since nothing is claimed but
the order of the stages. Each (seed, arm) is stored when it is done, so a broken-off call goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from subnet_search.batches import first_images
from subnet_search.data import Splits, load_splits
from subnet_search.elastic import Supernet, extract, make_elastic, recalibrate
from subnet_search.measure import describe_device, top1_percent
from subnet_search.ranking import RANKERS, rank
from subnet_search.settings import DataSettings, ElasticSettings, TrainSettings
from subnet_search.small_models import digits_cnn
from subnet_search.training import PlainStep, SandwichStep, train

SEEDS = (0, 1, 2)
EPOCHS, LR, NUM_RANDOM_NETS, IMAGES = 15, 0.05, 30, 1024
COMMAND = "python -m benchmarks.evidence.rank_order"
RESULTS = Path(__file__).parents[2] / "reports" / "results"
ARMS: dict[str, tuple[str | None, str | None]] = {  # ranked before training by, ranked after training by
    "never": (None, None),
    "noise before": ("noise", None),
    "Taylor before": ("taylor", None),
    "L1 before": ("l1", None),
    "random before": ("random", None),
    "Taylor after": (None, "taylor"),
    "Taylor before and after": ("taylor", "taylor"),
}
HEAD = f"""# When to rank

scikit-learn's digits, the quickstart's network; {EPOCHS} epochs of ordinary training, then {EPOCHS} of the
sandwich rule. Channels are reordered by the ranking before the sandwich rule, after it, or not at all. Top-1 in percent
on search-validation, mean over seeds 0, 1, 2 (lowest to highest): nets of uniform width, and the mean of
{NUM_RANDOM_NETS} random sub-nets.

Made by `{COMMAND}` (resumable).

| ranked | width 25 % | width 50 % | width 75 % | full | random sub-nets |
|---|---|---|---|---|---|
"""


def main() -> None:
    argparse.ArgumentParser(prog=COMMAND, description=__doc__).parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "rank_order.json"
    stored: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {"seeds": {}}
    for seed in SEEDS:
        arms = stored["seeds"].setdefault(str(seed), {})
        missing = [name for name in ARMS if name not in arms]
        if not missing:
            continue
        bench = Bench(seed)
        for name in missing:
            arms[name] = bench.measure(*ARMS[name])
            stored |= {"command": COMMAND, "date": date.today().isoformat(), "machine": describe_device()}
            path.write_text(json.dumps(stored, indent=1) + "\n", "utf-8")
            print(seed, name, arms[name], flush=True)
    (RESULTS / "rank_order.md").write_text(as_page(stored), "utf-8")
    print(as_page(stored))


class Bench:
    """One seed: its data and its trained network."""

    def __init__(self, seed: int) -> None:
        self.seed, self.splits = seed, load_splits(DataSettings(seed=seed))
        self.images = first_images(_plain(self.splits), IMAGES)
        self.example = self.images[0][0][:1]
        torch.manual_seed(seed)
        trained = self.supernet(digits_cnn)
        train(trained, self.splits, PlainStep(), TrainSettings(epochs=EPOCHS, seed=seed))
        self.weights = trained.model.state_dict()

    def supernet(self, build: Callable[[], torch.nn.Module]) -> Supernet:
        return make_elastic(build(), self.example, ElasticSettings(step=4))

    def trained(self) -> torch.nn.Module:
        net = digits_cnn()
        net.load_state_dict(self.weights)
        return net

    def measure(self, before: str | None, after: str | None) -> dict[str, float]:
        """Trains the supernet and looks at some of its sub-nets."""
        supernet = self.supernet(self.trained)
        if before:
            supernet.reorder(rank(supernet, self.images, RANKERS[before]))
        settings = TrainSettings(epochs=EPOCHS, lr=LR, seed=self.seed)
        train(supernet, self.splits, SandwichStep(), settings)
        if after:
            supernet.reorder(rank(supernet, self.images, RANKERS[after]))
        supernet.eval()
        space = supernet.space
        uniform = {f"{share:g}": space.uniform(share) for share in (0.25, 0.5, 0.75, 1.0)}
        random = space.sample(np.random.default_rng(self.seed), NUM_RANDOM_NETS)
        found = {name: self._top1(supernet, config) for name, config in uniform.items()}
        return {**found, "random": float(np.mean([self._top1(supernet, config) for config in random]))}

    def _top1(self, supernet: Supernet, config: Any) -> float:
        statistics = recalibrate(supernet, config, self.images)
        return top1_percent(extract(supernet, config, self.example, statistics), self.splits.search_val)


def _plain(splits: Splits) -> Any:
    return splits.train if splits.calibration is None else splits.calibration


def as_page(stored: dict[str, Any]) -> str:
    rows = []
    for name in ARMS:
        found = [seed[name] for seed in stored["seeds"].values() if name in seed]
        cells = []
        for column in ("0.25", "0.5", "0.75", "1", "random"):
            values = [arm[column] for arm in found]
            cells.append(f"{np.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        rows.append("| " + " | ".join([name, *cells]) + " |")
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
