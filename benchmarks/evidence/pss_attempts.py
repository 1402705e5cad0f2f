"""What was tried to make progressive sub-net search better: one thing changed at a time, on a seed of its own.

The seed is none of those of `benchmarks.evidence.pss`, so that whatever is taken over from here was not chosen on its
table. One file for each attempt under `runs/pss/attempts-PRICE/`; a broken-off call goes on with the next.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import torch

from benchmarks.evidence.pss import start, thinned, write_json
from benchmarks.evidence.pss_bench import (
    BEDS,
    GROUPS,
    NOISE,
    NOISE_FORWARDS,
    NUM_RANDOM,
    RUNS,
    TAYLOR_FORWARDS,
    WARMUP_STEPS,
    Bench,
)
from benchmarks.evidence.pss_page import SHARES, Rows, at_shares, file_of
from benchmarks.evidence.published import RESULTS
from subnet_search.measure import describe_device
from subnet_search.memory import keep_freed_memory
from subnet_search.ranking import Ranker, l1_ranking, random_ranking, taylor_ranking
from subnet_search.searchers.progressive import Criterion
from subnet_search.settings import ElasticSettings
from subnet_search.training import Among, EachKnob

COMMAND = "python -m benchmarks.evidence.pss_attempts"
BED, SEED, PRICE = "cifar10", 41, 185_000
FINER = ElasticSettings(step=1, min_share=0.125)  # eight groups a layer of width 8
NO_DEPTH = ElasticSettings(groups_per_layer=4, min_share=0.25, depth=False)
HEAD = """# Attempts at a better progressive sub-net search

One thing is changed at a time from the arm "PSS, noise" of [pss](pss.md), at a price of {price:,} forwards of the whole
net (a quarter of the table's there, so that there is time to try), on {bed}, seed {seed}, which is not in that table.
The whole net had {start:.2f} % before. Top-1 on test in percent at five shares of the multiply-adds, and for the whole
net. One seed: differences below about half a point say nothing.

Made by `{command}` (resumable attempt by attempt).
"""


@dataclass(frozen=True)
class Attempt:
    """A way to do it: the arm "PSS, noise" with something else."""

    name: str
    ranker: Ranker = NOISE
    forwards: int = NOISE_FORWARDS
    elastic: ElasticSettings = GROUPS
    criterion: Criterion = "loss_per_mac"
    warmup_steps: int = WARMUP_STEPS
    lr: float = 0.05
    distill: str = "fixed teacher"
    num_random: int = NUM_RANDOM
    trained: int | None = None  # so many elements of the path, evenly over the logarithm of multiply-adds
    anchor: float = 0.0  # the fixed teacher's share of the whole net's loss

    def run(self, bench: Bench) -> Rows:
        """Ranks, warms up, searches the path, trains it jointly."""
        training: Any = {"distill": self.distill, "num_random": self.num_random, "anchor": self.anchor}
        bench.reorder(self.ranker, self.forwards)
        if self.warmup_steps:
            bench.sandwich(EachKnob(), self.lr, self.warmup_steps, **training)
        path = thinned(bench, bench.path(criterion=self.criterion), self.trained)
        bench.sandwich(Among(tuple(path)), self.lr, None, **training)
        return bench.measured(path)


BASE = Attempt("PSS, noise")
ATTEMPTS = (
    BASE,
    dataclasses.replace(BASE, name="random ranking", ranker=random_ranking, forwards=0),
    dataclasses.replace(BASE, name="L1 ranking", ranker=l1_ranking, forwards=0),
    dataclasses.replace(BASE, name="Taylor ranking", ranker=taylor_ranking, forwards=TAYLOR_FORWARDS),
    dataclasses.replace(BASE, name="taught by the largest net (in place)", distill="in place"),
    dataclasses.replace(BASE, name="labels for all nets", distill="labels"),
    dataclasses.replace(BASE, name="eight elements of the path trained", trained=8),
    dataclasses.replace(BASE, name="eight elements, in place", trained=8, distill="in place"),
    dataclasses.replace(BASE, name="one random net a step", num_random=1),
    dataclasses.replace(BASE, name="learning rate 0.1", lr=0.1),
    dataclasses.replace(BASE, name="learning rate 0.02", lr=0.02),
    dataclasses.replace(BASE, name="learning rate 0.02, in place", lr=0.02, distill="in place"),
    dataclasses.replace(BASE, name="learning rate 0.02, one random net a step", lr=0.02, num_random=1),
    dataclasses.replace(BASE, name="no warm-up", warmup_steps=0),
    dataclasses.replace(BASE, name="warm-up of 200 steps", warmup_steps=200),
    dataclasses.replace(BASE, name="whole net half taught by what it was", anchor=0.5),
    dataclasses.replace(BASE, name="whole net taught by what it was", anchor=1.0),
    dataclasses.replace(BASE, name="whole net taught by what it was, no warm-up", anchor=1.0, warmup_steps=0),
    dataclasses.replace(BASE, name="criterion accuracy", criterion="accuracy"),
    dataclasses.replace(BASE, name="criterion loss", criterion="loss"),
    dataclasses.replace(BASE, name="eight groups a layer", elastic=FINER),
    dataclasses.replace(BASE, name="widths alone, no depth", elastic=NO_DEPTH),
)


def run_attempt(attempt: Attempt, price: int) -> dict[str, Any]:
    """What came of an attempt; from its file, where there is one."""
    path = RUNS / f"attempts-{price}" / f"{file_of(attempt.name)}.json"
    if not path.exists():
        _, splits, teacher = start(BED, SEED, price)
        bench = Bench(BEDS[BED], SEED, splits, teacher, price, attempt.elastic)
        start_s = time.perf_counter()
        rows = attempt.run(bench)
        seconds = time.perf_counter() - start_s
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            path,
            {"name": attempt.name, "rows": rows, "spent": bench.spent, "seconds": seconds, **bench.notes},
        )
        print(f"{attempt.name}: {np.mean(at_shares(rows, 'test')):.2f} % in {seconds:.0f} s", flush=True)
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def publish(found: list[dict[str, Any]], price: int) -> None:
    """Writes pss_attempts.md and pss_attempts.json."""
    folder, _, _ = start(BED, SEED, price)
    before = json.loads((folder / "teacher.json").read_text("utf-8"))
    today, machine = date.today().isoformat(), describe_device()
    data = {
        "command": COMMAND,
        "date": today,
        "machine": machine,
        "price": price,
        "seed": SEED,
        "before": before,
    }
    (RESULTS / "pss_attempts.json").write_text(
        json.dumps({**data, "attempts": found}, indent=1) + "\n", "utf-8"
    )
    lines = [HEAD.format(price=price, bed=BEDS[BED].title, seed=SEED, start=before["test"], command=COMMAND)]
    lines.append(
        f"| attempt | {' | '.join(f'{share:.0%}' for share in SHARES)} | mean | whole net | path's forwards |"
    )
    lines.append(f"|---|{'---|' * (len(SHARES) + 3)}")
    for one in found:
        tests = at_shares(one["rows"], "test")
        cells = " | ".join(f"{value:.2f}" for value in (*tests, np.mean(tests), one["rows"][-1]["test"]))
        lines.append(f"| {one['name']} | {cells} | {one['path']['images']:,} |")
    lines.append(f"\n{machine['cpu']}, one thread, torch {machine['torch']}, {today}.\n")
    (RESULTS / "pss_attempts.md").write_text("\n".join(lines), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND)
    parser.add_argument(
        "--price", type=int, default=PRICE, help="of an attempt, in forwards of the whole net"
    )
    price = parser.parse_args().price
    torch.set_num_threads(1)
    keep_freed_memory()
    found: list[dict[str, Any]] = []
    for attempt in ATTEMPTS:
        found.append(run_attempt(attempt, price))
        publish(found, price)
    print((RESULTS / "pss_attempts.md").read_text("utf-8"))


if __name__ == "__main__":
    main()
