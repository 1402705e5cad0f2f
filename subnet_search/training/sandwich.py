"""The sandwich rule: every step trains the largest, the smallest and a few random sub-nets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from search_spaces import InvalidInput
from subnet_search.batches import call_with
from subnet_search.data import Batch
from subnet_search.elastic.supernet import Supernet
from subnet_search.training.losses import at_least_float, cross_entropy, soft_cross_entropy
from subnet_search.training.sampling import EachKnob, Sampling


@dataclass(frozen=True)
class SandwichStep:
    """The sandwich rule with in-place distillation: n = num_random + 2 nets, one summed gradient.

    The largest net learns from the labels; the smallest and `num_random` others of `sampling` learn from its soft
    answers (`distill`), from those of a fixed `teacher` (a module that gives logits, on the device of
    training), or from the labels. The largest net may learn from a fixed teacher, too: `anchor` is the teacher's
    share of its loss, which keeps the largest net near what it was when it is its own teacher. Gradients are
    summed and not averaged, as in the authors' code, so the learning rate goes with n; the largest net's counts
    `emphasis` times.

    For other tasks than classification, `loss` is called with a net's answer, whatever it is, and the targets; all nets
    learn from the targets then, which `distill=False` has to say.

    Source:
        Yu, Huang, "Universally Slimmable Networks and Improved Training Techniques", 2019, arXiv:1903.05134.
        Unlike the paper, every width and depth is drawn on its own; `UniformWidths` has its one multiplier.
    """

    num_random: int = 2
    distill: bool = True
    teacher: nn.Module | None = field(default=None, repr=False)
    sampling: Sampling = field(default_factory=EachKnob)
    anchor: float = 0.0
    emphasis: float = 1.0
    loss: Callable[[Any, Any], Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.num_random < 0:
            raise InvalidInput(f"num_random must be 0 or more, got {self.num_random}")
        if self.teacher is not None and not self.distill:
            raise InvalidInput("a teacher needs distill=True, got distill=False; leave the teacher out")
        if self.loss is not None and self.distill:
            raise InvalidInput(
                "a loss of your own needs distill=False, got distill=True: soft answers are those of classes"
            )
        if not 0 <= self.anchor <= 1:
            raise InvalidInput(f"anchor is a share from 0 to 1, got {self.anchor}")
        if self.anchor and self.teacher is None:
            raise InvalidInput(f"anchor={self.anchor} needs a fixed teacher; give one, or leave anchor at 0")
        if not 0 < self.emphasis < float("inf"):
            raise InvalidInput(f"emphasis must be above 0, got {self.emphasis}")

    def __call__(self, supernet: Supernet, batch: Batch, rng: np.random.Generator) -> float:
        """Leaves the gradients summed over the nets; returns the sum of their losses."""
        images, labels = batch  # [B, ...], [B]
        space, measure = supernet.space, self.loss or cross_entropy
        supernet.activate(space.largest())
        logits = call_with(supernet, images)  # [B, num_classes], or what `loss` reads
        soft = self._soft_targets(images, logits) if self.distill else None
        loss = measure(logits, labels)
        if self.anchor and soft is not None:
            loss = (1 - self.anchor) * loss + self.anchor * soft_cross_entropy(logits, soft)
        (self.emphasis * loss).backward()
        total = loss.detach()
        try:
            sampling = self.sampling
            for config in (sampling.smallest(space), *sampling.draw(space, rng, self.num_random)):
                supernet.activate(config)
                answers = call_with(supernet, images)
                loss = measure(answers, labels) if soft is None else soft_cross_entropy(answers, soft)
                loss.backward()
                total = total + loss.detach()
        finally:
            supernet.activate(space.largest())
        return total.item()

    def _soft_targets(self, images: Tensor, logits: Tensor) -> Tensor:
        """Probabilities `[B, num_classes]` of the fixed teacher, else of the largest net."""
        with torch.no_grad():
            if self.teacher is not None:
                logits = self.teacher(images.contiguous())  # it may not run channels last
            return at_least_float(logits.detach()).softmax(dim=1)
