"""Supernet training by two processes against one, and against the same two when they exchange nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.figure import Figure
from subnet_search import SandwichStep, Splits, TrainSettings, make_elastic, train
from subnet_search.data import TensorBatches
from subnet_search.progress import OFF_SWITCH
from subnet_search.small_models import resnet20
from subnet_search.training.distributed import alone, current_world

RANKS, BATCH, STEPS, ROUNDS = 2, 128, 12, 5
SETTINGS = TrainSettings(
    epochs=1, lr=1e-3, device="cpu"
)  # small: random labels must not make the weights diverge
ONE, TOGETHER, APART = "1 process", "2 processes", "2 processes that exchange nothing"


def measure() -> list[Figure]:
    """Starts the two processes; all three ways of training take turns in them, in a random order each round."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    done = subprocess.run(
        [sys.executable, *command, "-m", "benchmarks.distributed"],
        env={**os.environ, "OMP_NUM_THREADS": "1", OFF_SWITCH: "0"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    rates = {name: np.array(values) for name, values in json.loads(done.stdout.splitlines()[-1]).items()}
    for name, values in rates.items():
        print(f"{name}: {np.median(values):,.0f} images a second", flush=True)
    what = f"images a second of {RANKS} ranks, sandwich rule, ResNet-20, batch {BATCH}, gloo, to those of"
    return [
        Figure(f"{what} {ONE}", "x", tuple(rates[TOGETHER] / rates[ONE]), ">=", 1.6, ONE, 1.0),
        Figure(f"{what} {APART}", "x", tuple(rates[TOGETHER] / rates[APART]), ">=", 0.9, APART, 1.0),
    ]


def splits_of(batch_size: int, seed: int) -> Splits:
    torch.manual_seed(seed)
    images, labels = torch.randn(batch_size * STEPS, 3, 32, 32), torch.randint(10, (batch_size * STEPS,))
    data = TensorBatches(images, labels, batch_size)
    val, test = (TensorBatches(torch.randn(4, 3, 32, 32), torch.zeros(4).long(), 4) for _ in range(2))
    return Splits(data, val, test)


def seconds_of(way: str, seed: int) -> float:
    """The slowest rank's seconds for one epoch."""
    rank = dist.get_rank()
    splits = splits_of(BATCH // RANKS if way == APART else BATCH, seed)
    supernet, seconds = make_elastic(resnet20(), torch.zeros(1, 3, 32, 32)), 0.0
    dist.barrier()
    if way == TOGETHER:
        seconds = train(supernet, splits, SandwichStep(), SETTINGS).seconds
    elif way == APART or rank == 0:
        with alone():
            seconds = train(supernet, splits, SandwichStep(), SETTINGS).seconds
    slowest = torch.tensor([seconds])
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return float(slowest.item())


def work() -> None:
    """What each of the two processes does."""
    current_world()
    torch.set_num_threads(1)
    ways, rng = (ONE, TOGETHER, APART), np.random.default_rng(0)
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for way in ways:
        seconds_of(way, 0)  # to warm up
    for seed in range(ROUNDS):
        for place in rng.permutation(len(ways)):
            rates[ways[place]].append(BATCH * STEPS / seconds_of(ways[place], seed))
    if dist.get_rank() == 0:
        print(json.dumps(rates))


if __name__ == "__main__":
    work()
