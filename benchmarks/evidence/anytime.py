"""Vertical slicing, adaptive depth and the run-time controller beside their rivals.

Each arm on one data set and seed is one file in runs/anytime/, so a broken-off call goes on with the next arm; the page
is made of the files that are there.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence.anytime_bench import (
    ADN_LENGTH,
    Place,
    adaptive,
    depth_alone,
    exits,
    nested,
    place_of,
    taxonomy,
    thin,
    triangular,
)
from benchmarks.evidence.anytime_control import controlled
from benchmarks.evidence.anytime_page import COMMAND, write_page
from benchmarks.evidence.published import RESULTS, published, restore
from subnet_search.memory import keep_freed_memory
from subnet_search.record.atomic import write_whole

RUNS = Path("runs") / "anytime"
SEEDS, STEPS = (60, 61, 62), 800
Arm = Callable[[Place], dict[str, Any]]


def _of_family(arm: Callable[[Place, str], dict[str, Any]], family: str) -> Arm:
    return lambda place: arm(dataclasses.replace(place, steps=ADN_LENGTH * place.steps), family)


DEPTH: dict[str, Callable[[Place, str], dict[str, Any]]] = {
    "alone": depth_alone,
    "adaptive": adaptive,
    "labels_not_read_by_the_base_net": partial(adaptive, hard=0.0),
    "no_distillation": partial(adaptive, distill=False),
    "no_switchable_norms": partial(adaptive, norms=False),
    "neither": partial(adaptive, distill=False, norms=False),
    "with_features": partial(adaptive, features=0.1),
}
ON_RESNET_ALONE = {"with_features"}  # transformers take twice as long
SLICING: dict[str, Arm] = {"triangular": triangular, "taxonomy": taxonomy, "thin": thin, "exits": exits}
PARTS: dict[str, tuple[tuple[str, ...], dict[str, Arm]]] = {  # on which data, and the arms by name
    "controller": (("fashion",), {"controller": controlled}),
    "slicing": (("cifar10", "fashion"), SLICING),
    "resnet": (("cifar10",), {name: _of_family(arm, "resnet") for name, arm in DEPTH.items()}),
    "vit": (
        ("cifar10",),
        {name: _of_family(arm, "vit") for name, arm in DEPTH.items() if name not in ON_RESNET_ALONE},
    ),
    "nested": (("cifar10",), {"nested": nested}),
}


def run_arm(part: str, data: str, seed: int, arm: str, steps: int) -> None:
    path = RUNS / f"{part}-{data}-{steps}" / str(seed) / f"{arm}.json"
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    start_s = time.process_time()
    found = PARTS[part][1][arm](place_of(data, seed, steps))
    found["cpu_seconds"] = time.process_time() - start_s
    write_whole(path, (json.dumps(found, indent=1) + "\n").encode())


def go_on(steps: int) -> None:
    """Makes files of the published arms of so many steps."""
    found = published("anytime")
    if found.get("steps") == steps:
        restore(
            (RUNS / f"{part}-{data}-{steps}" / seed / f"{arm}.json", content)
            for part, beds in found["parts"].items()
            for data, seeds in beds.items()
            for seed, arms in seeds.items()
            for arm, content in arms.items()
        )


def publish(steps: int) -> None:
    """Makes the page from all arms that are there."""
    found: dict[str, Any] = {}
    for part, (beds, arms) in PARTS.items():
        for data, seed in itertools.product(beds, SEEDS):
            folder = RUNS / f"{part}-{data}-{steps}" / str(seed)
            files = {arm: folder / f"{arm}.json" for arm in arms}
            done = {arm: json.loads(path.read_text("utf-8")) for arm, path in files.items() if path.exists()}
            found.setdefault(part, {}).setdefault(data, {})[str(seed)] = done
    wanted = {part: list(arms) for part, (_, arms) in PARTS.items()}
    write_page(found, wanted, steps)


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND)
    parser.add_argument("parts", nargs="*", help=f"default: {', '.join(PARTS)}")
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--steps", type=int, default=STEPS, help="of training, for every net")
    parser.add_argument("--page", action="store_true", help="train nothing, make the page of what is there")
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]}; parts are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the other work, too
    keep_freed_memory()
    go_on(arguments.steps)
    if not arguments.page:
        for seed, part in itertools.product(arguments.seeds, arguments.parts or PARTS):
            beds, arms = PARTS[part]
            for data, arm in itertools.product(beds, arms):
                run_arm(part, data, seed, arm, arguments.steps)
                publish(arguments.steps)
    publish(arguments.steps)
    print((RESULTS / "anytime.md").read_text("utf-8"))


if __name__ == "__main__":
    main()
