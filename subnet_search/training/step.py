"""What one training step is, and the plainest one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from subnet_search.data import Batch
from subnet_search.elastic.supernet import Supernet
from subnet_search.training.losses import cross_entropy

# Runs forward and backward for one batch, leaves the *summed* gradients in the supernet's parameters and
# returns the sum of the losses. `train` zeroes gradients before, checks the loss and lets the optimizer step
# afterwards.
Step = Callable[[Supernet, Batch, np.random.Generator], float]


def attached(step: Step, supernet: Supernet) -> AbstractContextManager[None]:
    """The time of a training, in which a step's own tensors hang in the supernet, where checkpoints find them."""
    attach: Callable[[Supernet], AbstractContextManager[None]] | None = getattr(step, "attached", None)
    return nullcontext() if attach is None else attach(supernet)


@dataclass(frozen=True)
class PlainStep:
    """Ordinary training: the whole supernet on the labels."""

    def __call__(self, supernet: Supernet, batch: Batch, rng: np.random.Generator) -> float:
        """Leaves the gradients of the largest net; returns its cross-entropy."""
        images, labels = batch  # [B, ...], [B]
        supernet.activate(supernet.space.largest())
        loss = cross_entropy(supernet(images), labels)
        loss.backward()
        return loss.item()
