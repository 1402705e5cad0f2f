"""Training of gates on images that the supernet has never seen: sandwich gate sparsification."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from search_spaces import InvalidInput
from subnet_search.batches import class_numbers, device_of, moved, on_device, resolve_device
from subnet_search.data import Batch, Splits, TensorBatches
from subnet_search.dynamic.building import Slimming, recalibrate_behind_gates, share_statistics
from subnet_search.dynamic.gates import straight_through
from subnet_search.dynamic.routes import Decisions
from subnet_search.dynamic.slimming import SlimmingNet, Unfolded, leaf_weights
from subnet_search.elastic.image_size import as_taken
from subnet_search.record import Run
from subnet_search.settings import DynamicSettings, TrainSettings
from subnet_search.training.checkpoint import Checkpoints
from subnet_search.training.loop import Fitting, Update, fit_identity
from subnet_search.training.losses import cross_entropy

COLLAPSED = 0.98  # of all images on one route


class GateCollapse(UserWarning):
    """Nearly all images take one route, so that the gate decides nothing."""


@dataclass(frozen=True, eq=False)
class Gathered:
    """What all ways answer to the images of a split, computed once: routes are frozen while gates learn.

    Attributes:
        answers: logits `[num_images, num_leaves, num_classes]`.
        gates: slimming logits by the decisions before, `[num_images, num_choices]`.
        pooled: what gates read, `[num_images, C]`.
        labels: `[num_images]`.
    """

    answers: Tensor
    gates: Mapping[Decisions, Tensor]
    pooled: Mapping[Decisions, Tensor]
    labels: Tensor

    @property
    def right(self) -> Tensor:
        """Which leaf answers right, booleans `[num_images, num_leaves]`."""
        return self.answers.argmax(dim=2) == self.labels[:, None]


@torch.no_grad()
def gather(net: SlimmingNet, batches: Iterable[Batch]) -> Gathered:
    """Lets all ways of a net answer the images of a split."""
    device = device_of(net)
    seen: list[Unfolded] = []
    labels: list[Tensor] = []
    for images, targets in batches:
        seen.append(net.unfold(moved(as_taken(net, images), device)))
        labels.append(class_numbers(targets, seen[-1].answers.shape[2]))
    if not seen:
        raise InvalidInput("no batch to read: the split is empty; it needs at least one image")
    prefixes = seen[0].gates
    return Gathered(
        torch.cat([one.answers for one in seen]).cpu(),
        {prefix: torch.cat([one.gates[prefix] for one in seen]).cpu() for prefix in prefixes},
        {prefix: torch.cat([one.pooled[prefix] for one in seen]).cpu() for prefix in prefixes},
        torch.cat(labels).cpu(),
    )


def guide_targets(right: Tensor, hard: Literal["try_best", "give_up"]) -> Tensor:
    """Whether each image is to take the largest sub-net (1) or the smallest one (0), `[num_images]`.

    Easy images, which the smallest sub-net gets right, take it. Others take the largest one; with "give_up" only those
    that the largest one gets right.

    Args:
        right: which leaf answers right, `[num_images, num_leaves]`, smallest first and largest last.
        hard: what to do with images that neither gets right.
    """
    wanted = ~right[:, 0] if hard == "try_best" else ~right[:, 0] & right[:, -1]
    return wanted.long()


def gate_loss(
    leaves: tuple[Decisions, ...],
    shares: Tensor,
    answers: Tensor,
    gates: Mapping[Decisions, Tensor],
    labels: Tensor,
    settings: DynamicSettings,
    aim: float,
) -> Tensor:
    """What a gate is trained on: by `settings.loss` its choices' values, or sandwich gate sparsification.

    "values": the gate is to say what each choice is worth, see `value_loss`.

    "sandwich": the chosen way's loss, the guide's, and the mean cost's distance from the aim,
    L = CE(y, f_chosen) + guide CE(target, s) + macs_weight (mean C(chosen) / C(largest) - aim)^2

    Source:
        Li et al., "Dynamic Slimmable Network", 2021, arXiv:2103.13258, for "sandwich". Unlike the authors' code the
        guide's loss reads logits, not probabilities, and costs are relative to the largest net's. "values" is ours.

    Args:
        leaves: full rows of decisions.
        shares: of the largest net's multiply-adds, `[num_leaves]`.
        answers: logits of all leaves, `[B, num_leaves, num_classes]`.
        gates: slimming logits by the decisions before, `[B, num_choices]`.
        labels: `[B]`.
        settings: which loss; weights, temperature and what hard images are to do.
        aim: the mean share to come to.
    """
    if settings.loss == "values":
        return value_loss(leaves, answers, gates, labels)
    weights = leaf_weights(leaves, gates, partial(straight_through, temperature=settings.temperature))
    chosen = torch.einsum("bl,blc->bc", weights, answers)
    towards = guide_targets(answers.detach().argmax(dim=2) == labels[:, None], settings.hard)
    guides = [cross_entropy(s, towards * (s.shape[1] - 1)) for s in gates.values()]
    mean_share = (weights @ shares.to(weights)).mean()
    return (
        cross_entropy(chosen, labels)
        + settings.guide * torch.stack(guides).mean()
        + settings.macs_weight * (mean_share - aim) ** 2
    )


def value_loss(
    leaves: tuple[Decisions, ...], answers: Tensor, gates: Mapping[Decisions, Tensor], labels: Tensor
) -> Tensor:
    """Brier score of what gates say of each choice, against the right class's probability behind that choice.

    Where a choice leads to several ways, it is their mean. With true values, argmax(value - price * cost) is the most
    accurate choice of all that cost as much on average, for one gate and any price, so one training serves all
    operating points. Where gates weigh channels, the answers of all ways are trained by cross-entropy, too.

    Args:
        leaves: full rows of decisions.
        answers: logits of all leaves, `[B, num_leaves, num_classes]`.
        gates: probabilities, by the decisions before, `[B, num_choices]`.
        labels: `[B]`.
    """
    rows = torch.arange(len(labels), device=labels.device)
    right = answers.detach().softmax(dim=2)[rows, :, labels]  # [B, num_leaves]
    distances = []
    for prefix, told in gates.items():
        behind = [
            [i for i, leaf in enumerate(leaves) if leaf[: len(prefix) + 1] == (*prefix, choice)]
            for choice in range(told.shape[1])
        ]
        values = torch.stack([right[:, ways].mean(dim=1) for ways in behind], dim=1)
        distances.append((told - values).square().sum(dim=1).mean())
    loss = torch.stack(distances).mean()
    if answers.requires_grad:
        loss = loss + cross_entropy(answers.flatten(0, 1), labels.repeat_interleave(len(leaves)))
    return loss


def train_gates(
    slimming: Slimming,
    splits: Splits,
    settings: DynamicSettings,
    run: Run | None = None,
    *,
    checkpoint: str = "dynamic/checkpoint",
    calibration: list[Batch] | None = None,
) -> tuple[float, ...]:
    """Trains the gates in place on `splits.gate`; the routes stay as they are.

    Without attention the routes' answers are computed once. With it every step runs all routes, and in the end their
    statistics are measured anew.

    Args:
        slimming: the net.
        splits: `gate` alone is read.
        settings: epochs, learning rate, loss.
        run: where checkpoints go; a second call goes on from the last one.
        checkpoint: their name.
        calibration: unaugmented training batches; needed with attention.

    Returns:
        The mean loss of each epoch.

    Raises:
        InvalidInput: there is no gate split, no calibration for a gate with attention, or gates of another loss.

    Warns:
        GateCollapse: one route gets nearly all images of the gate split; what to change is said. Not with "values",
            whose gates decide nothing before there is a price.
    """
    if settings.attention and not calibration:
        raise InvalidInput(
            "with attention the routes' statistics change, so that training needs calibration batches; give "
            "calibration=..., or attention=False"
        )
    if splits.gate is None:
        raise InvalidInput(
            "gates learn on images that the supernet has never seen, and the data have no gate split; set [data] "
            "gate_share above 0 (or give Splits a gate=...) and train the supernet anew"
        )
    net, device = slimming.net, resolve_device(settings.device)
    if any(net.gate(prefix).values != (settings.loss == "values") for prefix in net.prefixes()):
        raise InvalidInput(
            f'gates that tell values, and no others, are trained with loss "values", got loss "{settings.loss}"; build '
            'them with make_slimming(..., values=loss == "values")'
        )
    shares = slimming.shares()
    aim = settings.aim if settings.aim is not None else middle_aim(settings, shares)
    fit = TrainSettings(
        epochs=settings.epochs,
        lr=settings.lr,
        warmup_epochs=min(1.0, settings.epochs / 2),
        device=settings.device,
        checkpoint_seconds=settings.checkpoint_seconds,
        seed=settings.seed,
    )
    told = settings.model_dump(exclude={"device", "checkpoint_seconds", "targets", "points", "aim"})
    keys = [slimming.routes.configs[leaf].key for leaf in net.leaves]
    identity = fit_identity(f"gates {told} aim {aim:.6f} {keys}", fit)
    checkpoints = None if run is None else Checkpoints(run, checkpoint, identity)
    with on_device(device, net):
        batches: Iterable[Batch] = splits.gate
        update: Update = partial(_live_update, net, settings, shares, aim)
        if not settings.attention:
            batches, update = _cached(net, splits.gate, settings, shares, aim, device)
        place = Fitting(net.gates, batches, update, fit, checkpoints, what="gates").run()
        net.eval()
        if settings.attention and calibration is not None:
            recalibrate_behind_gates(net, calibration)
        with torch.no_grad():
            ways = torch.cat([net.run(moved(as_taken(net, images), device))[1] for images, _ in splits.gate])
    if settings.attention and calibration is not None:
        share_statistics(slimming, calibration[0][0][:1])
    histogram = torch.bincount(ways.cpu(), minlength=len(net.leaves)) / len(ways)
    if settings.loss == "sandwich" and (said := collapse_of(histogram.numpy())):
        warnings.warn(said, GateCollapse, stacklevel=2)
    return tuple(place.losses)


def middle_aim(settings: DynamicSettings, shares: Tensor) -> float:
    """The middle of the targets, or of what is reachable."""
    wanted = settings.targets if settings.unit == "macs" and settings.targets else shares.tolist()
    return (min(wanted) + max(wanted)) / 2


def _cached(
    net: SlimmingNet,
    batches: Iterable[Batch],
    settings: DynamicSettings,
    shares: Tensor,
    aim: float,
    device: torch.device,
) -> tuple[Iterable[Batch], Update]:
    known = gather(net, batches)
    rows = torch.arange(len(known.labels))
    order = TensorBatches(rows, known.labels, min(settings.batch_size, len(rows)), shuffle=True)
    answers = known.answers.to(device)
    pooled = {prefix: values.to(device) for prefix, values in known.pooled.items()}

    def update(batch: Batch, _: np.random.Generator) -> float:
        chosen, labels = batch
        logits = {}
        for prefix, values in pooled.items():
            gate = net.gate(prefix)
            logits[prefix] = gate.slimming(gate.units(values[chosen]))
        loss = gate_loss(net.leaves, shares, answers[chosen], logits, labels, settings, aim)
        loss.backward()
        return loss.item()

    return order, update


def _live_update(
    net: SlimmingNet,
    settings: DynamicSettings,
    shares: Tensor,
    aim: float,
    batch: Batch,
    _: np.random.Generator,
) -> float:
    images, labels = batch
    found = net.unfold(as_taken(net, images))
    labels = class_numbers(labels, found.answers.shape[2])
    loss = gate_loss(net.leaves, shares, found.answers, found.gates, labels, settings, aim)
    loss.backward()
    return loss.item()


def collapse_of(histogram: np.ndarray) -> str | None:
    """What to change where one route gets nearly all images; None where it does not.

    Args:
        histogram: share of the images on each route, `[num_leaves]`.
    """
    if histogram.max() < COLLAPSED:
        return None
    return (
        f"the gate sends {100 * histogram.max():.1f} % of the images along route {int(histogram.argmax())}, so it "
        "decides nothing. Set the gate later (places), where features tell more; give it more images (gate_share), or "
        "more weight to the guide; move aim towards the middle of the reachable costs; or train the supernet longer, "
        "if its smallest and largest sub-nets are right on nearly the same images"
    )
