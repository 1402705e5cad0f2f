"""Training of an LC-Net, the costs that it is told of, and the threshold that brings their mean to a target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from search_spaces import InvalidInput
from subnet_search.batches import device_of, moved, on_device, resolve_device
from subnet_search.data import Batch, Splits
from subnet_search.dynamic.layer_channel import LayerChannelNet
from subnet_search.measure.timing import Protocol, time_alone
from subnet_search.modes import evaluation_mode
from subnet_search.record import Run
from subnet_search.settings import DynamicSettings, TrainSettings
from subnet_search.training.checkpoint import Checkpoints
from subnet_search.training.loop import Fitting, fit_identity, length_of
from subnet_search.training.losses import cross_entropy, distillation_loss

COST_WEIGHT, TAUGHT, TEMPERATURE = 10.0, 0.5, 4.0  # LAUDNet's
SETTLED = 0.33  # of the training, until which the bounds of each block's use are let go
HALVINGS = 20


@dataclass(frozen=True, eq=False)
class CostModel:
    """What one input costs, as a share of the whole network's cost, from what was decided for it.

    Multiply-adds are exact. Milliseconds are a base, and for each block a straight line over the share of its channels
    that runs, fitted to measured times.

    Attributes:
        unit: "macs" or "latency_ms".
        whole: of the whole network, in that unit.
        base: without any block.
        lines: of each block the time at no channels and the time that all of them add; none for "macs".
    """

    unit: str
    whole: float
    base: float = 0.0
    lines: tuple[tuple[float, float], ...] = ()

    def __call__(self, net: LayerChannelNet) -> Tensor:
        """The cost of each input of the last call, the whole network's being 1, `[B]`; with gradients."""
        if not self.lines:
            return (net.costs() / self.whole).float()
        told = net.decisions
        total = torch.full_like(told.kept[0], self.base)
        for number, (start, rise) in enumerate(self.lines):
            total = total + told.kept[number] * (start + rise * told.shares[number].mean(dim=1))
        return total / self.whole


def macs_model(net: LayerChannelNet) -> CostModel:
    """Costs in multiply-adds, all scores included."""
    return CostModel("macs", float(net.total_macs))


@torch.inference_mode()
def latency_model(net: LayerChannelNet, example: Tensor, seed: int = 0) -> CostModel:
    """Costs in milliseconds of one input on this device, block by block.

    Source:
        Measured times of blocks in place of multiply-adds: Han et al., "Latency-aware Unified Dynamic Networks",
        2023, arXiv:2308.15949 (who predict them).

    Args:
        net: on the device that counts.
        example: one image `[1, ...]`.
        seed: of the order of rounds.
    """
    rng, protocol = np.random.default_rng(seed), Protocol(most_seconds=0.5)
    states = [(block, block.channels) for block in net.blocks]
    inputs: list[Tensor] = []
    hooks = [b.register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone())) for b in net.blocks]
    with evaluation_mode(net):
        net.decide(example, sliced=False)
        for hook in hooks:
            hook.remove()
        lines = []
        for (block, channels), x in zip(states, inputs, strict=True):
            times = []
            for share in (1.0, 0.5):
                pattern = None if channels is None else block.first_parts(share)
                times.append(time_alone(block.alone(x, pattern), rng, protocol).median_ms)
            rise = max(2 * (times[0] - times[1]), 0.0) if channels is not None else 0.0
            lines.append((times[0] - rise, rise))
        dense = time_alone(lambda: net.decide(example, sliced=True), rng, protocol).median_ms
    told = net.decisions
    ran = sum(
        float(told.kept[i][0] > 0.5) * (start + rise * float(told.shares[i][0].mean()))
        for i, (start, rise) in enumerate(lines)
    )
    base = max(dense - ran, 0.0)
    return CostModel("latency_ms", base + sum(map(sum, lines)), base, tuple(lines))


def usage_bounds(progress: float, target: float) -> tuple[float, float]:
    """The least and the most share of inputs that is to run each block: both the target at first, then 0 and 1.

    Args:
        progress: of the training, 0 to 1.
        target: mean cost to come to.
    """
    held = math.cos(math.pi / 2 * min(1.0, progress / SETTLED)) ** 2
    return held * target, 1 - held * (1 - target)


def layer_channel_loss(
    net: LayerChannelNet,
    logits: Tensor,
    labels: Tensor,
    taught: Tensor | None,
    cost: CostModel,
    target: float,
    progress: float,
) -> Tensor:
    """L = CE + 10 [(mean cost - t)^2 + mean_b (max(0, r_b - u)^2 + max(0, l - r_b)^2)] + 0.5 KD.

    r_b is the share of the batch that runs block b; its bounds l and u are those of `usage_bounds`.

    Source:
        LAUDNet's loss (arXiv:2308.15949), with costs relative to the whole network's.

    Args:
        net: after the call that gave `logits`.
        logits: `[B, num_classes]`.
        labels: `[B]`.
        taught: the whole network's logits, if it teaches.
        cost: of each input.
        target: t, the mean cost to come to.
        progress: of the training, 0 to 1.
    """
    low, high = usage_bounds(progress, target)
    used = net.used()
    bounds = ((used - high).clamp_min(0) ** 2 + (low - used).clamp_min(0) ** 2).mean()
    loss = cross_entropy(logits, labels) + COST_WEIGHT * ((cost(net).mean() - target) ** 2 + bounds)
    if taught is not None:
        loss = loss + TAUGHT * distillation_loss(logits, taught, TEMPERATURE)
    return loss


def train_layer_channel(
    net: LayerChannelNet,
    splits: Splits,
    settings: DynamicSettings,
    cost: CostModel,
    run: Run | None = None,
    *,
    teacher: nn.Module | None = None,
    checkpoint: str = "dynamic/checkpoint",
) -> tuple[float, ...]:
    """Trains scores and weights together on `splits.train`, in place; returns the mean loss of each epoch.

    Args:
        net: comes back in evaluation mode.
        splits: `train` alone is read.
        settings: epochs, learning rate, `aim` (default: half of the cost).
        cost: of an input.
        run: where checkpoints go; a second call goes on from the last one.
        teacher: gives the whole network's logits.
        checkpoint: their name.
    """
    target = 0.5 if settings.aim is None else settings.aim
    fit = TrainSettings(
        epochs=settings.epochs,
        lr=settings.lr,
        warmup_epochs=min(1.0, settings.epochs / 2),
        device=settings.device,
        checkpoint_seconds=settings.checkpoint_seconds,
        seed=settings.seed,
    )
    steps = settings.epochs * length_of(splits.train)
    told = f"layers and channels, {settings.channel_groups} groups, {cost.unit}, aim {target:.6f}, {type(teacher)}"
    checkpoints = None if run is None else Checkpoints(run, checkpoint, fit_identity(told, fit))
    update = partial(_update, net, teacher, cost, target, steps)
    teachers = [] if teacher is None else [teacher]
    with on_device(resolve_device(settings.device), net, *teachers), evaluation_mode(*teachers):
        place = Fitting(net, splits.train, update, fit, checkpoints, what="layers and channels").run()
    net.eval()
    return tuple(place.losses)


def _update(
    net: LayerChannelNet,
    teacher: nn.Module | None,
    cost: CostModel,
    target: float,
    total_steps: int,
    batch: Batch,
    _: np.random.Generator,
) -> float:
    images, labels = batch
    logits = net(images)
    taught = None
    if teacher is not None:
        with torch.no_grad():
            taught = teacher(images.contiguous())
    progress = int(net.steps) / total_steps
    loss = layer_channel_loss(net, logits, labels, taught, cost, target, progress)
    loss.backward()
    net.steps += 1
    return loss.item()


@dataclass(frozen=True, eq=False)
class Looked:
    """What a net does on the images of a split at one threshold, in their order.

    Attributes:
        costs: of each, the whole network's being 1, `[num_images]`.
        macs: `[num_images]`.
        right: booleans `[num_images]`.
        used: share of the images that run each block, `[num_blocks]`.
    """

    costs: np.ndarray
    macs: np.ndarray
    right: np.ndarray
    used: np.ndarray


@torch.no_grad()
def look(net: LayerChannelNet, batches: Iterable[Batch], cost: CostModel, threshold: float) -> Looked:
    """Lets a net answer the images of a split at a threshold, by masks; the net keeps its own threshold."""
    own, device = net.threshold, device_of(net)
    costs, macs, right, used = [], [], [], []
    net.threshold = threshold
    try:
        with evaluation_mode(net):
            for images, labels in batches:
                logits = net.decide(moved(images, device), sliced=False)
                costs.append(cost(net).cpu())
                macs.append(net.costs().cpu())
                right.append(logits.argmax(dim=1).cpu() == labels)
                used.append(net.used().cpu() * len(labels))
    finally:
        net.threshold = own
    if not costs:
        raise InvalidInput("no batch to read: the split is empty; it needs at least one image")
    number = sum(map(len, right))
    return Looked(
        torch.cat(costs).double().numpy(),
        torch.cat(macs).double().numpy(),
        torch.cat(right).numpy(),
        torch.stack(used).sum(dim=0).numpy() / number,
    )


def reachable_costs(look_at: Callable[[float], Looked]) -> tuple[float, float]:
    """The mean costs between which the threshold moves a net: nothing, and everything, is above it."""
    return float(look_at(1.0).costs.mean()), float(look_at(-1.0).costs.mean())


def threshold_for(look_at: Callable[[float], Looked], target: float) -> float:
    """The threshold at which the mean cost over some images comes nearest to a target.

    Args:
        look_at: what the net does on the images at a threshold.
        target: a share of the whole network's cost.

    Raises:
        InvalidInput: the target is out of reach.
    """
    least, most = reachable_costs(look_at)
    if not least <= target <= most:
        raise InvalidInput(
            f"a mean cost of {target:g} of the whole network's cannot be reached: thresholds lead from {least:.4f} to "
            f"{most:.4f} of it; choose a target in between"
        )
    low, high = -1.0, 1.0  # mean cost falls from the one to the other
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if look_at(middle).costs.mean() > target else (low, middle)
    return min((low, high), key=lambda threshold: abs(float(look_at(threshold).costs.mean()) - target))
