"""The sandwich rule against the training steps of its four sub-nets, each extracted and by itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from benchmarks.figure import Figure, interleaved_seconds, median_ratio
from subnet_search import PlainStep, SandwichStep, Splits, TrainSettings, extract, make_elastic, train
from subnet_search.data import Batch, TensorBatches
from subnet_search.elastic import Supernet
from subnet_search.progress import OFF_SWITCH
from subnet_search.small_models import resnet20
from subnet_search.training.optimizer import make_optimizer
from subnet_search.training.step import Step

BATCH, NUM_STEPS, ROUNDS = 128, 10, 5
LOOP_STEPS, LOOP_ROUNDS = 20, 3
SETTINGS = TrainSettings(lr=1e-3)  # small: random labels must not make the weights diverge while timing
Trained = Sequence[tuple[nn.Module, torch.optim.Optimizer]]


def measure() -> list[Figure]:
    torch.manual_seed(0)
    batch = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
    supernet = make_elastic(resnet20(), batch[0]).train()
    optimizer = make_optimizer(supernet, SETTINGS)
    ratios, seconds = [], []
    for seed in range(NUM_STEPS):
        space = supernet.space
        configs = (space.largest(), space.smallest(), *space.sample(np.random.default_rng(seed), 2))
        nets = [extract(supernet, config).train() for config in configs]
        trained = [(net, make_optimizer(net, SETTINGS)) for net in nets]
        calls = [
            partial(_sandwich_step, supernet, optimizer, batch, seed),
            partial(_own_steps, trained, batch),
            partial(_own_steps, trained[:1], batch),
        ]
        timed = interleaved_seconds(calls, ROUNDS, seed)
        ratios.append(median_ratio(timed, 0, 1))
        seconds.append(np.median(timed, axis=0))
    return [
        Figure(
            "sandwich step / sum of its four nets' steps, ResNet-20, batch 128",
            "x",
            tuple(ratios),
            "<=",
            1.10,
            "steps of the four extracted nets",
            1.0,
        ),
        *_loops(np.median(seconds, axis=0)),
    ]


def _loops(step_seconds: NDArray[np.float64]) -> list[Figure]:
    """Images per second of the library's training loop, by the sandwich rule and with one net.

    Args:
        step_seconds: of the bare steps of the sandwich rule, of its four nets and of the largest net alone.
    """
    images, labels = torch.randn(BATCH * LOOP_STEPS, 3, 32, 32), torch.randint(10, (BATCH * LOOP_STEPS,))
    data = TensorBatches(images, labels, BATCH)
    splits = Splits(data, data_of(BATCH), data_of(BATCH))
    rates: dict[str, list[float]] = {"sandwich": [], "plain": []}
    steps: dict[str, Step] = {"sandwich": SandwichStep(num_random=2), "plain": PlainStep()}
    os.environ[OFF_SWITCH] = "0"
    for seed in range(LOOP_ROUNDS):
        for name, step in steps.items():
            supernet = make_elastic(resnet20(), images[:1])
            settings = SETTINGS.model_copy(update={"epochs": 1, "seed": seed})
            found = train(supernet, splits, step, settings)
            rates[name].append(len(images) / found.seconds)
    _, four, one = (BATCH / step_seconds).tolist()
    return [
        Figure(
            "training by the sandwich rule, ResNet-20, batch 128",
            "images/s",
            tuple(rates["sandwich"]),
            ">=",
            four / 1.10,
            "floor: bare steps of four static nets",
            four,
        ),
        Figure(
            "the same loop with one net",
            "images/s",
            tuple(rates["plain"]),
            ">=",
            one / 1.10,
            "floor: bare steps of that net",
            one,
        ),
    ]


def data_of(count: int) -> TensorBatches:
    return TensorBatches(torch.randn(count, 3, 32, 32), torch.randint(10, (count,)), BATCH)


def _sandwich_step(supernet: Supernet, optimizer: torch.optim.Optimizer, batch: Batch, seed: int) -> None:
    optimizer.zero_grad(set_to_none=True)
    SandwichStep(num_random=2)(supernet, batch, np.random.default_rng(seed))
    optimizer.step()


def _own_steps(trained: Trained, batch: Batch) -> None:
    images, labels = batch
    for net, optimizer in trained:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
