"""Fine-tuning of an extracted sub-net, with a teacher."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from subnet_search.batches import on_device, resolve_device
from subnet_search.data import Batch, Splits
from subnet_search.elastic.image_size import as_taken
from subnet_search.measure import check_calibrated, correct
from subnet_search.modes import evaluation_mode
from subnet_search.record import Run
from subnet_search.settings import FinetuneSettings
from subnet_search.training.checkpoint import Checkpoints, Place
from subnet_search.training.loop import Fitting, fit_identity
from subnet_search.training.losses import cross_entropy, distillation_loss


@dataclass(frozen=True, eq=False)
class FinetuneResult:
    """The tuned net and what tuning brought: percent on search-validation, mean loss per epoch, seconds."""

    net: nn.Module
    before: float
    after: float
    losses: tuple[float, ...]
    seconds: float


def finetune(
    net: nn.Module,
    splits: Splits,
    settings: FinetuneSettings | None = None,
    *,
    teacher: nn.Module | None = None,
    run: Run | None = None,
    checkpoint: str = "finetune",
    after_epoch: Callable[[nn.Module, int], None] | None = None,
) -> FinetuneResult:
    """Trains a copy of `net` on labels and on a teacher's soft answers.

    The loss is (1 - s) cross_entropy + s T^2 soft_cross_entropy with s = `teacher_share`, T = `temperature`.
    The last epoch counts; only if search-validation finds the tuned net worse by more than two standard errors,
    the untuned one comes back. Search-validation chose the sub-net for its high accuracy there, so a choice of
    the best epoch, or of the better of the two, would prefer luck to training. Where the sub-net takes smaller images,
    the teacher still sees those of the data.

    Source:
        The loss: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
        arXiv:1503.02531.

    Args:
        net: an extracted, calibrated sub-net; left untouched.
        splits: `train` and `search_val` are read, `test` never.
        settings: as in `train`, and the teacher's part.
        teacher: gives logits, such as the supernet at its largest; not trained, and comes back as it was.
        run: where the checkpoint named `checkpoint` is kept, from which a second call goes on.
        after_epoch: is called with the net and the number of finished epochs after each; may raise to stop.

    Raises:
        InvalidInput: an uncalibrated net, or batches that do not fit.
        SubnetSearchError: the loss or a weight is not finite.
    """
    check_calibrated(net, "fine-tuned")
    settings = settings or FinetuneSettings()
    tuned = copy.deepcopy(net)
    identity = fit_identity(f"finetune with {type(teacher).__name__}", settings)
    fitting = _Watched(
        tuned,
        splits.train,
        partial(_update, tuned, teacher, settings),
        settings,
        None if run is None else Checkpoints(run, checkpoint, identity),
        what="finetune",
    )
    fitting.after_epoch = after_epoch
    teachers = [] if teacher is None else [teacher]
    device = resolve_device(settings.device)
    with on_device(device, *teachers), evaluation_mode(*teachers):
        place = fitting.run()
    with on_device(device, net, tuned):
        before, after = correct(net, splits.search_val), correct(tuned, splits.search_val)
    if _clearly_worse(after, before):
        tuned, after = copy.deepcopy(net), before
    percents = (100 * float(before.mean()), 100 * float(after.mean()))
    return FinetuneResult(tuned.train(net.training), *percents, tuple(place.losses), place.seconds)


class _Watched(Fitting):
    """Tells after each epoch."""

    after_epoch: Callable[[nn.Module, int], None] | None = None

    def _epoch(self, place: Place, *how: Any) -> None:
        super()._epoch(place, *how)
        if self.after_epoch is not None:
            self.after_epoch(self.model, place.epoch)


def _clearly_worse(after: np.ndarray, before: np.ndarray) -> bool:
    """Whether fewer answers `[num_images]` are right, by more than two standard errors of the difference."""
    error = math.sqrt((after.var() + before.var()) / len(after))
    return bool(after.mean() < before.mean() - 2 * error)


def _update(
    net: nn.Module, teacher: nn.Module | None, settings: FinetuneSettings, batch: Batch, _: object
) -> float:
    images, labels = batch
    logits = net(as_taken(net, images))  # [B, num_classes]
    loss = cross_entropy(logits, labels)
    if teacher is not None:
        with torch.no_grad():
            taught = teacher(images.contiguous())  # [B, num_classes]; it may not run channels last
        share = settings.teacher_share
        loss = (1 - share) * loss + share * distillation_loss(logits, taught, settings.temperature)
    loss.backward()
    return loss.item()
