"""Bootstrapped supernet training: sub-nets follow a slow average of the network instead of its last weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from search_spaces import InvalidInput, SearchSpace, SubnetConfig
from subnet_search.data import Batch
from subnet_search.data.augment import random_crop, random_flip
from subnet_search.elastic.layers import is_batch_norm
from subnet_search.elastic.supernet import Supernet
from subnet_search.training.losses import at_least_float, cross_entropy, soft_cross_entropy
from subnet_search.training.sampling import Among, EachKnob, Sampling

AVERAGE = "average"  # the name of the average in the supernet, while it is trained


class Average(nn.Module):
    """An exponential moving average of a model's parameters and buffers.

    It is a module of buffers, so that it moves and is stored with the supernet that it hangs in while that is trained.
    The first updates count more, min(decay, (1 + n) / (10 + n)), so that random first weights are soon forgotten.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = [name for name, _ in _tensors(model)]
        for place, (_, tensor) in enumerate(_tensors(model)):
            self.register_buffer(f"t{place}", tensor.detach().clone())
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.updates: Tensor

    @torch.no_grad()
    def update(self, model: nn.Module, decay: float) -> None:
        """Moves towards the model by a share of 1 - decay."""
        count = int(self.updates)
        share = 1.0 - min(decay, (1 + count) / (10 + count))
        for place, (_, tensor) in enumerate(_tensors(model)):
            mine = self.get_buffer(f"t{place}")
            if tensor.is_floating_point():
                mine.lerp_(tensor.detach(), share)
            else:
                mine.copy_(tensor)
        self.updates += 1

    def state(self) -> dict[str, Tensor]:
        """The averaged tensors by the model's names."""
        return {name: self.get_buffer(f"t{place}") for place, name in enumerate(self.names)}


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


@dataclass(frozen=True)
class BootstrapStep:
    """The sandwich rule with a moving average of the network as teacher (in-place bootstrapping).

    The largest net learns from the labels; `num_random` others of `sampling` and the smallest one learn from the soft
    answers of the averaged network at the largest config. With `ensemble` the smallest one follows the mean of the
    averaged answers of all larger nets of the step. With `views` other than "none" every smaller net sees images
    shifted (and mirrored) anew, while its teacher sees them as the largest net does (multi-view consistency). Where
    `sampling` is a list of sub-nets, its first is the largest: the teacher then stands inside the space that is used.

    The average is made by the first call and then hangs in the supernet; `train` keeps it in its checkpoints and takes
    it out in the end. A step costs one forward more than the sandwich rule's, `num_random` more with `ensemble`.

    Source:
        Li et al., "Dynamic Slimmable Network", 2021, arXiv:2103.13258 (in-place ensemble bootstrapping), and
        "DS-Net++", 2021, arXiv:2109.10060 (in-place bootstrapping, multi-view consistency). Unlike the authors' code,
        early updates of the average count more, and dropout is left to the network.
    """

    num_random: int = 2
    decay: float = 0.997
    ensemble: bool = False
    views: Literal["none", "crop", "crop+flip"] = "none"
    sampling: Sampling = field(default_factory=EachKnob)

    def __post_init__(self) -> None:
        if self.num_random < 0:
            raise InvalidInput(f"num_random must be 0 or more, got {self.num_random}")
        if not 0 <= self.decay < 1:
            raise InvalidInput(f"decay must be at least 0 and less than 1, got {self.decay}")
        if self.views not in _VIEWS:
            raise InvalidInput(f"views must be one of {', '.join(_VIEWS)}, got {self.views!r}")

    def __call__(self, supernet: Supernet, batch: Batch, rng: np.random.Generator) -> float:
        """Leaves the gradients summed over the nets; returns the sum of their losses."""
        images, labels = batch  # [B, ...], [B]
        if self.views != "none" and images.ndim != 4:
            raise InvalidInput(
                f'views="{self.views}" shifts images [B, C, H, W], got {list(images.shape)}; use views="none"'
            )
        average = average_of(supernet)
        average.update(supernet.model, self.decay)
        space = supernet.space
        largest, smallest = _largest(self.sampling, space), self.sampling.smallest(space)
        try:
            supernet.activate(largest)
            loss = cross_entropy(supernet(images), labels)
            loss.backward()
            total = loss.detach()
            soft = averaged_answers(supernet, images)
            softs = [soft]
            for config in self.sampling.draw(space, rng, self.num_random):
                supernet.activate(config)
                total = total + self._follow(supernet, images, soft)
                if self.ensemble:
                    softs.append(averaged_answers(supernet, images))
            supernet.activate(smallest)
            total = total + self._follow(supernet, images, torch.stack(softs).mean(dim=0))
        finally:
            supernet.activate(space.largest())
        return total.item()

    def _follow(self, supernet: Supernet, images: Tensor, soft: Tensor) -> Tensor:
        loss = soft_cross_entropy(supernet(_VIEWS[self.views](images)), soft)
        loss.backward()
        return loss.detach()

    @contextmanager
    def attached(self, supernet: Supernet) -> Iterator[None]:
        """Hangs a new average into the supernet for the time of a training."""
        setattr(supernet, AVERAGE, Average(supernet.model))
        try:
            yield
        finally:
            delattr(supernet, AVERAGE)


_VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda images: images,
    "crop": random_crop,
    "crop+flip": lambda images: random_flip(random_crop(images)),
}


def average_of(supernet: Supernet) -> Average:
    """The average that hangs in the supernet; it begins as the network is now."""
    if not hasattr(supernet, AVERAGE):
        setattr(supernet, AVERAGE, Average(supernet.model))
    average: Average = getattr(supernet, AVERAGE)
    return average


@torch.no_grad()
def averaged_answers(supernet: Supernet, images: Tensor) -> Tensor:
    """Probabilities `[B, num_classes]` of the active sub-net with averaged weights, in evaluation mode.

    Batch norms use averaged statistics for the largest net; no other sub-net has any, so there they are the batch's.
    """
    model = supernet.model
    modes = [(module, module.training) for module in model.modules()]
    own = supernet.active != supernet.space.largest()
    try:
        model.eval()
        for module in model.modules():
            module.training = own and is_batch_norm(module)
        state = average_of(supernet).state()
        logits = functional_call(model, state, (supernet.as_taken(images),))
    finally:
        for module, training in modes:
            module.training = training
    return at_least_float(logits).softmax(dim=1)


def _largest(sampling: Sampling, space: SearchSpace) -> SubnetConfig:
    return sampling.configs[0] if isinstance(sampling, Among) else space.largest()
