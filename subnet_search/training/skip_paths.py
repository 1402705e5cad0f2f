"""Adaptive depth: two nets are trained, the whole one and the one without any skippable sub-path; all others work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces import InvalidInput
from search_spaces.knob import whole_number
from search_spaces.presets import SkipPaths
from subnet_search.batches import call_with
from subnet_search.data import Batch
from subnet_search.elastic.sub_paths import find_skip_paths
from subnet_search.elastic.supernet import Supernet
from subnet_search.elastic.switchable import add_switchable_norms
from subnet_search.training.losses import at_least_float, cross_entropy

MOST_LOGITS = 500  # of the teacher's, as in the authors' code


def make_skip_aware(supernet: Supernet, parts: int | None = None) -> SkipPaths:
    """Splits every stage in two, and gives the norms of its mandatory part a second copy for when the rest is skipped.

    A norm listens to the sub-path of its own stage alone; norms outside of stages, and those in skippable blocks, are
    left as they are. Unlike the authors' ResNets, a norm in the shortcut of a mandatory block gets a copy, too.

    Args:
        supernet: changed in place; of the model's own classes, `ElasticSettings(form="own classes")`.
        parts: see `skip_paths` in `search_spaces.presets`.

    Raises:
        InvalidInput: there are no such stages, or the supernet runs a graph.
    """
    paths = find_skip_paths(supernet, parts)
    add_switchable_norms(supernet, {stage.skippable: stage.mandatory for stage in paths.stages})
    return paths


@dataclass(frozen=True)
class SkipPathStep:
    """Trains the whole net on the labels and the base net, which skips every sub-path, on what the whole one says.

        loss = alpha * CE(y, z_whole)
               + (1 - alpha) * [(1 - hard) * T^2 * KL(p_whole / T, p_base / T) + hard * CE(y, z_base)]
               + features * sum over stages of KL(softmax of pooled features, whole and base)

    No other net is ever trained: skippable blocks learn to refine what the mandatory ones made, so that each of them
    may be left out. Only the teacher's `top` largest logits count, renormalised on both sides (all of them where there
    are fewer classes). Statistics of every sub-net come from `recalibrate` afterwards.

    Source:
        Kang, Lee, "Adaptive Depth Networks with Skippable Sub-Paths", NeurIPS 2024, arXiv:2312.16392. Unlike the
        authors' code, which compares features of all stages but one, all stages are compared. `hard` is ours, for
        short trainings, in which the whole net has little to teach for long.

    Attributes:
        paths: from `make_skip_aware`, or from `find_skip_paths` for norms without a second copy.
        distill: False: the base net learns from the labels instead.
        alpha: the whole net's share of the loss.
        hard: share of the base net's loss that comes from the labels; 0 in the paper.
        temperature: T, above 0; larger is softer.
        top: so many logits of the teacher count.
        features: weight of the comparison of features; 0.0: none.

    Raises:
        InvalidInput: for numbers that make no sense.
    """

    paths: SkipPaths
    distill: bool = True
    alpha: float = 0.5
    temperature: float = 1.0
    top: int = MOST_LOGITS
    features: float = 0.0
    hard: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise InvalidInput(f"alpha is a share above 0 and below 1, got {self.alpha}")
        if not 0 <= self.hard <= 1:
            raise InvalidInput(f"hard is a share from 0 to 1, got {self.hard}")
        if not self.temperature > 0 or whole_number(self.top, "top") < 2 or not self.features >= 0:
            raise InvalidInput(
                "temperature must be above 0, top at least 2 and features 0 or more, got "
                f"{self.temperature}, {self.top} and {self.features}"
            )

    def __call__(self, supernet: Supernet, batch: Batch, rng: np.random.Generator) -> float:
        """Leaves the gradients of both nets summed; returns the sum of their losses."""
        images, labels = batch  # [B, ...], [B]
        ends = [stage.mandatory[-1] for stage in self.paths.stages]
        ends_kept = [stage.skippable[-1] for stage in self.paths.stages]
        with _watching(supernet, ends_kept if self.features else ()) as seen:
            supernet.activate(supernet.space.largest())
            teacher = call_with(supernet, images)  # [B, num_classes]
        loss = self.alpha * cross_entropy(teacher, labels)
        loss.backward()
        total, wanted = loss.detach(), [tensor.detach() for tensor in seen]
        try:
            with _watching(supernet, ends if self.features else ()) as seen:
                supernet.activate(self.paths.base)
                answer = call_with(supernet, images)
            loss = (1 - self.alpha) * self._base_loss(answer, teacher.detach(), labels)
            for own, other in zip(seen, wanted, strict=True):
                loss = loss + self.features * divergence(own, other)
            loss.backward()
        finally:
            supernet.activate(supernet.space.largest())
        return (total + loss.detach()).item()

    def _base_loss(self, logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        if not self.distill or self.hard == 1:
            return cross_entropy(logits, labels)
        kept = teacher.topk(min(self.top, teacher.shape[1]), dim=1).indices  # [B, top]
        t = self.temperature
        loss = t**2 * divergence(logits.gather(1, kept) / t, teacher.gather(1, kept) / t)
        return loss if self.hard == 0 else (1 - self.hard) * loss + self.hard * cross_entropy(logits, labels)


def divergence(values: Tensor, wanted: Tensor) -> Tensor:
    """KL(softmax(wanted) || softmax(values)) of rows `[B, n]`, averaged over the batch."""
    logs, target = (F.log_softmax(at_least_float(rows), dim=1) for rows in (values, wanted))
    return F.kl_div(logs, target, reduction="batchmean", log_target=True)


@contextmanager
def _watching(supernet: Supernet, paths: Sequence[str]) -> Iterator[list[Tensor]]:
    """Collects what blocks answer, averaged over places, `[B, C]` each, in the order of their calls."""
    seen: list[Tensor] = []

    def note(module: nn.Module, args: Any, answer: Any) -> None:
        seen.append(_pooled(answer, module))

    blocks = [supernet.model.get_submodule(path) for path in paths]
    handles = [block.register_forward_hook(note) for block in blocks]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _pooled(answer: Any, block: nn.Module) -> Tensor:
    if not isinstance(answer, Tensor) or answer.ndim < 2:
        raise InvalidInput(
            f"features can be compared where blocks answer with one tensor, got {type(answer).__name__}; "
            "take features=0.0"
        )
    if answer.ndim == 2:
        return answer
    kinds = {kind for module in block.modules() for kind in type(module).__mro__}
    convolution = nn.Conv1d if answer.ndim == 3 else nn.Conv2d  # tokens [B, N, C] may be convolved as images
    channels_last = convolution not in kinds and (answer.ndim == 3 or nn.LayerNorm in kinds)
    return answer.flatten(1, -2).mean(1) if channels_last else answer.flatten(2).mean(2)
