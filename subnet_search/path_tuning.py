"""Tuning on the way down a path: one sub-net is trained by itself until its accuracy is back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from search_spaces import SubnetConfig
from subnet_search.batches import Steps
from subnet_search.data import Batch, Splits
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure.scoring import SharedScorer
from subnet_search.searchers.path import PathElement, Score
from subnet_search.seeding import derive_seed
from subnet_search.settings import ProgressiveSettings, TrainSettings
from subnet_search.training import train
from subnet_search.training.losses import cross_entropy

TUNE_ROUND = 25  # steps between two looks at whether the accuracy is back


def tune_element(
    supernet: Supernet,
    splits: Splits,
    settings: ProgressiveSettings,
    scorer: SharedScorer,
    element: PathElement,
    place: int,
    least: float,
) -> Score:
    """Trains the weights of one sub-net until its accuracy is `least` again, or the steps are used up."""
    score, left, rounds = element.score, settings.tune_steps, 0
    while left and score.top1_percent < least:
        count = min(TUNE_ROUND, left)
        seed = derive_seed(settings.seed, "tune", place, rounds)
        step, shown = _OnlyStep(element.config), Steps(splits.train, count, seed)
        plain = TrainSettings(
            epochs=1,
            lr=settings.tune_lr,
            momentum=0.0,
            weight_decay=0.0,
            warmup_epochs=0.0,
            device=settings.device,
            seed=seed,
        )
        train(supernet, dataclasses.replace(splits, train=shown), step, plain)
        scorer.count(element.config, step.images)
        scorer.forget()
        score = scorer(element.config, True)
        left, rounds = left - count, rounds + 1
    return score


@dataclass
class _OnlyStep:
    """Trains one sub-net of the supernet on the labels; weights that it does not use stay as they are."""

    config: SubnetConfig
    images: int = 0  # so far

    def __call__(self, supernet: Supernet, batch: Batch, rng: np.random.Generator) -> float:
        """Leaves the gradients of that sub-net; returns its cross-entropy."""
        images, labels = batch  # [B, ...], [B]
        with supernet.subnet(self.config):
            loss = cross_entropy(supernet(images), labels)
            loss.backward()
        self.images += len(labels)
        return loss.item()
