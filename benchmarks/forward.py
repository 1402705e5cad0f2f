"""Forward time: extracted sub-nets against hand-written ones, and the active supernet against extracted ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from benchmarks.figure import Figure, interleaved_seconds, median_ratio
from benchmarks.handwritten import ResNet20, ResNet50, Weights
from subnet_search import extract, make_elastic, recalibrate
from subnet_search.small_models import resnet20

Case = tuple[str, Callable[[], nn.Module], Callable[[Weights], nn.Module], tuple[int, ...], int]
CASES: tuple[Case, ...] = (
    ("resnet50, 224 px, batch 8", torchvision.models.resnet50, ResNet50, (8, 3, 224, 224), 11),
    ("ResNet-20, 32 px, batch 128", resnet20, ResNet20, (128, 3, 32, 32), 41),
)
NUM_CONFIGS = 10


def measure() -> list[Figure]:
    return [figure for case in CASES for figure in _measure(*case)]


@torch.no_grad()
def _measure(
    name: str,
    build: Callable[[], nn.Module],
    write_by_hand: Callable[[Weights], nn.Module],
    shape: tuple[int, ...],
    rounds: int,
) -> list[Figure]:
    torch.manual_seed(0)
    images = torch.randn(shape)
    supernet = make_elastic(build(), images).eval()
    against_hand, against_extracted = [], []
    for config in supernet.space.sample(np.random.default_rng(0), NUM_CONFIGS):
        statistics = recalibrate(supernet, config, [(images, torch.zeros(len(images)))])
        extracted = extract(supernet, config, statistics=statistics).eval()
        by_hand = write_by_hand(extracted.state_dict()).eval()
        with supernet.subnet(config, statistics):
            nets = (by_hand, extracted, supernet)
            _check_equal([net(images) for net in nets])
            seconds = interleaved_seconds([partial(net, images) for net in nets], rounds)
        against_hand.append(median_ratio(seconds, 1, 0))
        against_extracted.append(median_ratio(seconds, 2, 1))
    return [
        Figure(
            f"extracted / hand-written, {name}", "x", tuple(against_hand), "<=", 1.02, "hand-written net", 1.0
        ),
        Figure(
            f"active / extracted, {name}", "x", tuple(against_extracted), "<=", 1.15, "extracted net", 1.0
        ),
    ]


def _check_equal(answers: list[Tensor]) -> None:
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0], rtol=1e-4, atol=1e-4 * float(answers[0].abs().max()))
