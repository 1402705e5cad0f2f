"""Fine-tuning of an extracted sub-net, with a teacher and the best epoch on search-validation data."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from subnet_search.batches import on_device, resolve_device
from subnet_search.data import Batch, Splits
from subnet_search.measure import check_calibrated, top1_percent
from subnet_search.measure.accuracy import evaluation_mode
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
) -> FinetuneResult:
    """Trains a copy of `net` on labels and on a teacher's soft answers; keeps the best epoch.

    The loss is (1 - s) cross_entropy + s T^2 soft_cross_entropy with s = `teacher_share`, T = `temperature`.
    After each epoch search-validation decides; the untuned net takes part, so the result is never worse
    there.

    Source:
        The loss: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
        arXiv:1503.02531.

    Args:
        net: an extracted, calibrated sub-net; left untouched.
        splits: `train` and `search_val` are read, `test` never.
        settings: as in `train`, and the teacher's part.
        teacher: gives logits, such as the supernet at its largest; not trained, and comes back as it was.
        run: where the checkpoint named `checkpoint` is kept, from which a second call goes on.

    Raises:
        InvalidInput: an uncalibrated net, or batches that do not fit.
        SubnetSearchError: the loss or a weight is not finite.
    """
    check_calibrated(net, "fine-tuned")
    settings = settings or FinetuneSettings()
    tuned = copy.deepcopy(net)
    identity = fit_identity(f"finetune with {type(teacher).__name__}", settings)
    fitting = Fitting(
        tuned,
        splits.train,
        partial(_update, tuned, teacher, settings),
        settings,
        None if run is None else Checkpoints(run, checkpoint, identity),
        what="finetune",
        look=lambda place: _keep_best(place, tuned, splits.search_val),
    )
    teachers = [] if teacher is None else [teacher]
    with on_device(resolve_device(settings.device), *teachers), evaluation_mode(*teachers):
        place = fitting.run()
    tuned.load_state_dict(place.kept)
    found = place.notes["accuracies"]
    return FinetuneResult(tuned.train(net.training), found[0], max(found), tuple(place.losses), place.seconds)


def _update(
    net: nn.Module, teacher: nn.Module | None, settings: FinetuneSettings, batch: Batch, _: object
) -> float:
    images, labels = batch
    logits = net(images)  # [B, num_classes]
    loss = cross_entropy(logits, labels)
    if teacher is not None:
        with torch.no_grad():
            taught = teacher(images)  # [B, num_classes]
        share = settings.teacher_share
        loss = (1 - share) * loss + share * distillation_loss(logits, taught, settings.temperature)
    loss.backward()
    return loss.item()


def _keep_best(place: Place, net: nn.Module, search_val: Iterable[Batch]) -> None:
    """Notes the accuracy; of equal epochs the later one is kept, it has seen more."""
    found = place.notes.setdefault("accuracies", [])
    found.append(top1_percent(net, search_val))
    if found[-1] == max(found):
        place.kept = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
