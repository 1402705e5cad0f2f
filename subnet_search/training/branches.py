"""Training of supernets in branches: one pass of all groups of channels trains every number of branches."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from search_spaces import SearchSpace, SubnetConfig
from search_spaces.presets import BRANCH_KNOB
from subnet_search.data import Batch
from subnet_search.elastic.restructured import all_branches
from subnet_search.elastic.supernet import Supernet
from subnet_search.training.losses import at_least_float, cross_entropy, soft_cross_entropy
from subnet_search.training.sampling import EachKnob, Sampling


@dataclass(frozen=True)
class BranchStep:
    """Trains the first 1, 2, ... K branches in one pass, as later groups of channels change nothing in earlier ones.

    The loss of a pass is the sum of K cross-entropies, so the learning rate goes with K. Where blocks may be skipped,
    too, further passes follow: one without any skippable block, and `num_random` of blocks drawn by `sampling`; there
    each number of branches learns what it said with all blocks, or with `distill = False` the labels. Of sub-paths
    (`ElasticSettings(adaptive_depth=True)`) only the base net, which skips all of them, is trained.

    Source:
        Lee, Shin, "Anytime Neural Prediction via Slicing Networks Vertically", 2018, arXiv:1807.02609: the unweighted
        sum of the sub-nets' losses. The one pass and its triangular pattern are ours.
    """

    num_random: int = 2
    distill: bool = True
    sampling: Sampling = field(default_factory=EachKnob)

    def __call__(self, supernet: Supernet, batch: Batch, rng: np.random.Generator) -> float:
        """Leaves the gradients of all passes summed; returns the sum of their losses."""
        images, labels = batch  # [B, ...], [B]
        supernet.activate(supernet.space.largest())
        answers = all_branches(supernet, images)  # K times [B, num_classes]
        losses = [cross_entropy(logits, labels) for logits in answers]
        total = _backward(losses)
        softs = [at_least_float(logits.detach()).softmax(dim=1) for logits in answers]
        try:
            for config in self._shallower(supernet, rng):
                supernet.activate(config)
                answers = all_branches(supernet, images)
                if self.distill:
                    losses = [soft_cross_entropy(*pair) for pair in zip(answers, softs, strict=True)]
                else:
                    losses = [cross_entropy(logits, labels) for logits in answers]
                total = total + _backward(losses)
        finally:
            supernet.activate(supernet.space.largest())
        return total.item()

    def _shallower(self, supernet: Supernet, rng: np.random.Generator) -> list[SubnetConfig]:
        """The configs of the further passes, with all branches."""
        space = supernet.space
        if supernet.sub_paths is not None:
            return [supernet.sub_paths.base]
        if not any(knob.kind == "depth" for knob in space.knobs):
            return []
        drawn = [self.sampling.smallest(space), *self.sampling.draw(space, rng, self.num_random)]
        return [_with_all_branches(space, config) for config in drawn]


def _backward(losses: list[Tensor]) -> Tensor:
    loss = sum(losses[1:], losses[0])
    loss.backward()
    return loss.detach()


def _with_all_branches(space: SearchSpace, config: SubnetConfig) -> SubnetConfig:
    return space.canonical({**config, BRANCH_KNOB: space.largest()[BRANCH_KNOB]})
