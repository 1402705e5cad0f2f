"""One sandwich step against the training steps of its four sub-nets, each extracted and by itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.figure import Figure, interleaved_seconds, median_ratio
from subnet_search import SandwichStep, TrainSettings, extract, make_elastic
from subnet_search.data import Batch
from subnet_search.elastic import Supernet
from subnet_search.small_models import resnet20
from subnet_search.training.optimizer import make_optimizer

NUM_STEPS, ROUNDS = 10, 5
SETTINGS = TrainSettings(lr=1e-3)  # small: random labels must not make the weights diverge while timing
Trained = Sequence[tuple[nn.Module, torch.optim.Optimizer]]


def measure() -> list[Figure]:
    torch.manual_seed(0)
    batch = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))
    supernet = make_elastic(resnet20(), batch[0]).train()
    optimizer = make_optimizer(supernet, SETTINGS)
    ratios = []
    for seed in range(NUM_STEPS):
        space = supernet.space
        configs = (space.largest(), space.smallest(), *space.sample(np.random.default_rng(seed), 2))
        nets = [extract(supernet, config).train() for config in configs]
        trained = [(net, make_optimizer(net, SETTINGS)) for net in nets]
        calls = [
            partial(_sandwich_step, supernet, optimizer, batch, seed),
            partial(_own_steps, trained, batch),
        ]
        ratios.append(median_ratio(interleaved_seconds(calls, ROUNDS, seed), 0, 1))
    return [
        Figure(
            "sandwich step / sum of its four nets' steps, ResNet-20, batch 128",
            "x",
            tuple(ratios),
            "<=",
            1.10,
            "steps of the four extracted nets",
            1.0,
        )
    ]


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
