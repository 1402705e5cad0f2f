"""What was tried to make progressive sub-net search better: one thing changed at a time, on seeds of its own.

The seeds are none of those of `benchmarks.evidence.pss`, so that whatever is taken over from here was not chosen on its
table. One file for each attempt and seed under `runs/pss/attempts-PRICE/`; a broken-off call goes on with the next.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
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
from benchmarks.evidence.published import RESULTS, published, restore
from subnet_search.measure import describe_device
from subnet_search.memory import keep_freed_memory
from subnet_search.ranking import Ranker, l1_ranking, random_ranking, taylor_ranking
from subnet_search.searchers.progressive import Criterion
from subnet_search.settings import ElasticSettings
from subnet_search.training import Among, EachKnob

COMMAND = "python -m benchmarks.evidence.pss_attempts"
BED, SEEDS, PRICE = "cifar10", (41, 42, 43), 185_000
FINER = ElasticSettings(step=1, min_share=0.125)  # eight groups a layer of width 8
NO_DEPTH = ElasticSettings(groups_per_layer=4, min_share=0.25, depth=False)
HEAD = """# Attempts at a better progressive sub-net search

One thing is changed at a time from the arm "PSS, noise" of [pss](pss.md), or, further down, from the best of what was
tried before, at a price of {price:,} forwards of the whole net (a quarter of the table's there, so that there is time
to try), on {bed}, seeds {seeds}, which are not in that table. The whole net had {whole} % before. Top-1 on test in
percent at five shares of the multiply-adds (mean over seeds, least and greatest in brackets), and what the whole net
gained or lost. Of one seed, differences below about half a point say nothing.

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
    emphasis: float = 1.0  # of the whole net's gradient
    averaged: float | None = None  # decay of a running average of the weights

    def run(self, bench: Bench) -> Rows:
        """Ranks, warms up, searches the path, trains it jointly."""
        names = ("distill", "num_random", "anchor", "emphasis")
        training: Any = {name: getattr(self, name) for name in names}
        bench.reorder(self.ranker, self.forwards)
        if self.warmup_steps:
            bench.sandwich(EachKnob(), self.lr, self.warmup_steps, **training)
        path = thinned(bench, bench.path(criterion=self.criterion), self.trained)
        bench.sandwich(Among(tuple(path)), self.lr, None, averaged=self.averaged, **training)
        return bench.measured(path)


BASE = Attempt("PSS, noise")
EIGHT = dataclasses.replace(BASE, name="eight elements, in place", trained=8, distill="in place")
COLD = dataclasses.replace(EIGHT, name="eight elements, in place, no warm-up", warmup_steps=0)
ATTEMPTS = (
    BASE,
    dataclasses.replace(BASE, name="random ranking", ranker=random_ranking, forwards=0),
    dataclasses.replace(BASE, name="L1 ranking", ranker=l1_ranking, forwards=0),
    dataclasses.replace(BASE, name="Taylor ranking", ranker=taylor_ranking, forwards=TAYLOR_FORWARDS),
    dataclasses.replace(BASE, name="taught by the largest net (in place)", distill="in place"),
    dataclasses.replace(BASE, name="labels for all nets", distill="labels"),
    dataclasses.replace(BASE, name="eight elements of the path trained", trained=8),
    EIGHT,
    COLD,
    dataclasses.replace(COLD, name="all elements, in place, no warm-up", trained=None),
    dataclasses.replace(COLD, name="five elements, in place, no warm-up", trained=5),
    dataclasses.replace(COLD, name="twelve elements, in place, no warm-up", trained=12),
    dataclasses.replace(COLD, name="eight, in place, no warm-up, whole net counts twice", emphasis=2.0),
    dataclasses.replace(COLD, name="eight, in place, no warm-up, whole net counts four times", emphasis=4.0),
    dataclasses.replace(COLD, name="eight, in place, no warm-up, weights averaged", averaged=0.99),
    dataclasses.replace(COLD, name="eight, in place, no warm-up, L1", ranker=l1_ranking, forwards=0),
    dataclasses.replace(COLD, name="eight, in place, no warm-up, learning rate 0.03", lr=0.03),
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


def path_of(price: int, seed: int, attempt: str) -> Path:
    return RUNS / f"attempts-{price}" / str(seed) / f"{file_of(attempt)}.json"


def run_attempt(attempt: Attempt, price: int, seed: int) -> None:
    """One attempt on one seed, unless its file is there."""
    path = path_of(price, seed, attempt.name)
    if path.exists():
        return
    _, splits, teacher = start(BED, seed, price)
    bench = Bench(BEDS[BED], seed, splits, teacher, price, attempt.elastic)
    start_s = time.perf_counter()
    rows = attempt.run(bench)
    found = {"rows": rows, "spent": bench.spent, "seconds": time.perf_counter() - start_s, **bench.notes}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    tests = at_shares(rows, "test")
    told = f"{np.mean(tests):.2f} %, whole net {rows[-1]['test']:.2f} %, in {found['seconds']:.0f} s"
    print(f"{attempt.name}, seed {seed}: {told}", flush=True)


def go_on(price: int) -> None:
    """Makes files of the published attempts at this price."""
    found = published("pss_attempts")
    if found.get("price") == price:
        teachers = {("teacher", seed): content for seed, content in found["before"].items()}
        tried = {(n, seed): one for n, seeds in found["attempts"].items() for seed, one in seeds.items()}
        restore((path_of(price, int(seed), name), one) for (name, seed), one in tried.items())
        restore(
            (RUNS / f"{BED}-{price}" / seed / f"{name}.json", one) for (name, seed), one in teachers.items()
        )


def publish(price: int) -> None:
    """Writes pss_attempts.md and pss_attempts.json from the attempts that are there."""
    attempts: dict[str, dict[str, Any]] = {}
    for attempt in ATTEMPTS:
        paths = {str(seed): path_of(price, seed, attempt.name) for seed in SEEDS}
        if found := {
            seed: json.loads(path.read_text("utf-8")) for seed, path in paths.items() if path.exists()
        }:
            attempts[attempt.name] = found
    before = {
        seed: json.loads((RUNS / f"{BED}-{price}" / seed / "teacher.json").read_text("utf-8"))
        for seed in sorted({seed for seeds in attempts.values() for seed in seeds})
    }
    today, machine = date.today().isoformat(), describe_device()
    data = {
        "command": COMMAND,
        "date": today,
        "machine": machine,
        "price": price,
        "before": before,
        "attempts": attempts,
    }
    write_json(RESULTS / "pss_attempts.json", data)
    whole = ", ".join(f"{one['test']:.2f}" for one in before.values())
    columns = " | ".join(f"{share:.0%}" for share in SHARES)
    lines = [
        HEAD.format(price=price, bed=BEDS[BED].title, seeds=", ".join(before), whole=whole, command=COMMAND),
        f"| attempt | seeds | {columns} | mean | whole net, change | path's forwards |",
        f"|---|---|{'---|' * (len(SHARES) + 3)}",
    ]
    for name, seeds in attempts.items():
        tests = np.array([at_shares(one["rows"], "test") for one in seeds.values()])
        means, by_seed = tests.mean(axis=0), tests.mean(axis=1)
        spread = f" ({by_seed.min():.2f} to {by_seed.max():.2f})" if len(by_seed) > 1 else ""
        change = np.mean([one["rows"][-1]["test"] - before[seed]["test"] for seed, one in seeds.items()])
        forwards = np.mean([one["path"]["images"] for one in seeds.values()])
        cells = " | ".join(f"{value:.2f}" for value in means)
        lines.append(
            f"| {name} | {', '.join(seeds)} | {cells} | {means.mean():.2f}{spread} | {change:+.2f} | {forwards:,.0f} |"
        )
    lines.append(f"\n{machine['cpu']}, one thread, torch {machine['torch']}, {today}.\n")
    (RESULTS / "pss_attempts.md").write_text("\n".join(lines), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND)
    parser.add_argument(
        "--price", type=int, default=PRICE, help="of an attempt, in forwards of the whole net"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), choices=SEEDS)
    parser.add_argument("--attempts", nargs="+", default=[one.name for one in ATTEMPTS], metavar="NAME")
    parser.add_argument("--page", action="store_true", help="train nothing, make the page of what is there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    go_on(arguments.price)
    by_name = {one.name: one for one in ATTEMPTS}
    if unknown := set(arguments.attempts) - set(by_name):
        parser.error(f"there is no attempt {min(unknown)!r}; attempts are {', '.join(map(repr, by_name))}")
    if not arguments.page:
        for seed, name in itertools.product(arguments.seeds, arguments.attempts):
            run_attempt(by_name[name], arguments.price, seed)
            publish(arguments.price)
    publish(arguments.price)
    print((RESULTS / "pss_attempts.md").read_text("utf-8"))


if __name__ == "__main__":
    main()
