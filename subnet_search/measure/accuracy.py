"""Whether a network answers right."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from search_spaces import InvalidInput, SubnetSearchError
from subnet_search.batches import call_with, device_of, to_device
from subnet_search.data import Batch
from subnet_search.elastic.image_size import as_taken
from subnet_search.modes import evaluation_mode


def answers(
    net: nn.Module, batches: Iterable[Batch], size: torch.Size | None = None
) -> tuple[Tensor, Tensor]:
    """What `net` answers, in evaluation mode and without gradients, on the net's device.

    Args:
        net: gives logits `[B, num_classes]`; comes back in the mode in which it came.
        batches: (input `[B, ...]`, class number `[B]`); images are resized for a sub-net that takes smaller ones.
        size: of one input; checked if given.

    Returns:
        Logits `[num_images, num_classes]` and targets `[num_images]` in the order of the batches, on the CPU.

    Raises:
        InvalidInput: no batch, batches that are no such pairs, or an extracted net without statistics.
        SubnetSearchError: an answer is not finite, so it would mean nothing.
    """
    check_calibrated(net, "evaluated")
    logits, targets = [], []
    with evaluation_mode(net), torch.inference_mode():
        for images, labels in to_device(batches, device_of(net), size):
            found = call_with(net, as_taken(net, images))  # [B, num_classes]
            logits.append(found)  # fetched once at the end: no wait per batch
            targets.append(labels)
        if not logits:
            raise InvalidInput("accuracy needs at least one batch, got none")
        found = torch.cat(logits).cpu()
    if not found.isfinite().all() and not all(
        tensor.isfinite().all() for images, _ in batches for tensor in tree_leaves(images)
    ):
        raise SubnetSearchError(
            "the network's answers are not finite, as its inputs hold NaN or infinity; mend the data"
        )
    return check_finite(found), torch.cat(targets).cpu()


def check_finite(logits: Tensor) -> Tensor:
    """The logits; raises `SubnetSearchError` where one is not finite, as they would mean nothing."""
    if not logits.isfinite().all():
        raise SubnetSearchError("the network's answers are not finite; its weights or statistics are broken")
    return logits


def correct(net: nn.Module, batches: Iterable[Batch], size: torch.Size | None = None) -> np.ndarray:
    """Which inputs `net` classifies right, booleans `[num_images]` in the order of the batches; as `answers`."""
    logits, targets = answers(net, batches, size)
    return _right(logits, targets)


def top1_percent(net: nn.Module, batches: Iterable[Batch], size: torch.Size | None = None) -> float:
    """The share of inputs classified right, in percent; as `correct`."""
    return share_right(*answers(net, batches, size))


def share_right(logits: Tensor, targets: Tensor) -> float:
    """Top-1 in percent of logits `[num_images, num_classes]` and targets `[num_images]`."""
    return 100.0 * float(_right(logits, targets).mean())


def _right(logits: Tensor, targets: Tensor) -> np.ndarray:
    found: np.ndarray = (logits.argmax(dim=1) == targets).numpy()
    return found


def check_calibrated(net: nn.Module, purpose: str) -> None:
    """Raises `InvalidInput` for an extracted net whose batch norms have no statistics of their own."""
    if not getattr(net, "calibrated", True):
        raise InvalidInput(
            f"the net has batch norm but no statistics of its own, so it cannot be {purpose}; "
            "pass statistics=recalibrate(supernet, config, batches) to extract"
        )
