"""Whether a network answers right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from search_spaces import InvalidInput, SubnetSearchError
from subnet_search.batches import device_of, to_device
from subnet_search.data import Batch


def correct(net: nn.Module, batches: Iterable[Batch], size: torch.Size | None = None) -> np.ndarray:
    """Which inputs `net` classifies right, in evaluation mode and without gradients, on the net's device.

    Args:
        net: gives logits `[B, num_classes]`; comes back in the mode in which it came.
        batches: (input `[B, ...]`, class number `[B]`).
        size: of one input; checked if given.

    Returns:
        Booleans `[num_images]`, in the order of the batches.

    Raises:
        InvalidInput: no batch, batches that are no such pairs, or an extracted net without statistics.
        SubnetSearchError: an answer is not finite, so the accuracy would mean nothing.
    """
    check_calibrated(net, "evaluated")
    device, rights, finite = device_of(net), [], torch.tensor(True)
    with evaluation_mode(net), torch.inference_mode():
        for images, labels in to_device(batches, device, size):
            logits = net(images)  # [B, num_classes]
            rights.append(logits.argmax(dim=1) == labels)
            finite = finite.to(device) & logits.isfinite().all()  # read once at the end: no wait per batch
    if not rights:
        raise InvalidInput("accuracy needs at least one batch, got none")
    if not finite:
        raise SubnetSearchError("the network's answers are not finite; its weights or statistics are broken")
    return torch.cat(rights).cpu().numpy()


def top1_percent(net: nn.Module, batches: Iterable[Batch], size: torch.Size | None = None) -> float:
    """The share of inputs classified right, in percent; as `correct`."""
    return 100.0 * float(correct(net, batches, size).mean())


def check_calibrated(net: nn.Module, purpose: str) -> None:
    """Raises `InvalidInput` for an extracted net whose batch norms have no statistics of their own."""
    if not getattr(net, "calibrated", True):
        raise InvalidInput(
            f"the net has batch norm but no statistics of its own, so it cannot be {purpose}; "
            "pass statistics=recalibrate(supernet, config, batches) to extract"
        )


@contextmanager
def evaluation_mode(*nets: nn.Module) -> Iterator[None]:
    """Puts nets into evaluation mode for a while; every module gets its own mode back."""
    modes = [(module, module.training) for net in nets for module in net.modules()]
    for net in nets:
        net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
