"""Stops the evaluation of a sub-net once the images seen so far show that another one beats it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol, TypeGuard

import numpy as np

from search_spaces import InvalidInput, SubnetConfig, SubnetSearchError
from subnet_search.record import Evaluation, Images, Objective, Partial

from .recorder import Evaluator

RACED = "top1_percent"
FIRST_LOOK, GROWTH = 1 / 16, math.sqrt(2)
STAKES = np.array([[0.6], [0.25], [0.1]])  # [num_stakes, 1]
LARGEST_STAKE = 0.9  # of what could be lost on the next image


class RacedEvaluator(Evaluator, Protocol):
    """An evaluator that can also show its answers stage by stage."""

    def stages(self, config: SubnetConfig) -> Generator[Partial]:
        """The answers so far, after some images, more, and in the end all of them.

        The images come in an order drawn for this sub-net at random, independently of all answers. The values of
        all objectives but top1_percent are final from the first stage on.
        """


@dataclass(frozen=True, slots=True)
class Racing:
    """How sure one has to be.

    Attributes:
        error: the chance, at most, that a sub-net which the rival does not beat on all images is stopped.
    """

    error: float = 0.05

    def __post_init__(self) -> None:
        if isinstance(self.error, bool) or not 0 < self.error < 1:
            raise InvalidInput(f"the error of racing must be between 0 and 1, got {self.error!r}")

    def context(self, context: str) -> str:
        """That of an evaluator, for what is recorded of a race."""
        return hashlib.sha256(repr((context, self.error, look_sizes(2**16))).encode()).hexdigest()[:16]


def look_sizes(of: int) -> list[int]:
    """After how many of `of` images one looks: a sixteenth, then always 1.41 times as many, in the end all."""
    sizes = [math.ceil(of * FIRST_LOOK * GROWTH**i) for i in range(8)]  # the ninth would be all of them
    return [*dict.fromkeys(size for size in sizes if size < of), of]


def can_race(evaluator: Evaluator) -> TypeGuard[RacedEvaluator]:
    """True where sub-nets of this evaluator can be raced.

    Raises:
        InvalidInput: says why they cannot.
    """
    if not callable(getattr(evaluator, "stages", None)):
        raise InvalidInput(
            f"racing needs an evaluator with stages(config), and {type(evaluator).__name__} has none; "
            "give it one, or search without racing"
        )
    check_raced(evaluator.objectives)
    return True


def check_raced(objectives: Sequence[Objective]) -> None:
    """Raises `InvalidInput` where too little is known of a sub-net before it has seen all images."""
    whole = [o.name for o in objectives if o.function is not None]
    raced = [o for o in objectives if o.name == RACED and o.goal == "max"]
    if whole or not raced:
        told = f"{', '.join(whole)} needs all answers" if whole else f"{RACED} is not among them"
        raise InvalidInput(
            f"racing compares sub-nets by {RACED} where everything else is known before, but of the objectives "
            f"{', '.join(o.name for o in objectives)} {told}; search without racing"
        )


def race(
    evaluator: RacedEvaluator, config: SubnetConfig, seen: Iterable[Evaluation], racing: Racing
) -> Evaluation:
    """Evaluates one sub-net, only in part if it turns out to be beaten.

    The rival is, among the evaluations in full that are no worse in all other objectives, that of the best accuracy.
    It is known before the first image, and the sub-net is beaten by any of them exactly if its accuracy on all
    images is lower than the rival's: so one comparison stands for all members of the front. A sub-net without a
    rival, such as one that is cheaper than all others, is always evaluated in full, and so are members of the
    front: what is stopped never becomes one. After each stage `evidence` weighs the images seen so far.

    The accuracy of a sub-net that was stopped is estimated as the rival's accuracy on all images minus the mean
    difference on those seen, its spread is the standard error of that. It is always below the rival's, and too low
    rather than too high, since one stops where the difference looks large.

    Source:
        Racing: Maron, Moore, "Hoeffding Races: Accelerating Model Selection Search for Classification and Function
        Approximation", NIPS 1993. Unlike there, comparisons are paired, and for several objectives. The test: see
        `evidence`.

    Args:
        evaluator: as `can_race` accepts it.
        config: canonical.
        seen: what is known under the same context.
        racing: how sure one has to be.
    """
    objectives = evaluator.objectives
    raced = [o.name for o in objectives].index(RACED)
    seen, rival, before = list(seen), None, 0
    with closing(evaluator.stages(config)) as stages:
        for partial in stages:
            _check(partial, before, config)
            if before == 0:
                rival = strongest(objectives, seen, partial)
            before = len(partial.correct)
            if before == partial.of:
                return _in_full(config, partial)
            if rival and evidence(_lost_to(rival, partial), partial.of) >= 1 / racing.error:
                return _stopped(config, partial, rival, raced, racing)
    raise SubnetSearchError(f"the stages of {config.key} ended after {before} images, before all were seen")


def evidence(lost: np.ndarray, of: int) -> float:
    """How strongly the images seen so far speak against "this sub-net answers no fewer of all images than its rival".

    A bet on every image, placed before it is seen: with stake s the money is multiplied by 1 + s (d - m), where d is
    1 if only the rival is right, -1 if only the sub-net is, else 0, and m the mean of what is left to come if both
    were equal on all images, m = -(sum of d so far) / (images left). If the claim is true, no bet wins on average,
    and by Ville's inequality the most money there has ever been exceeds 1 / error with a chance of at most `error`:
    however often one looks. That holds because images are drawn without replacement in an order that depends on no
    answer. Three stakes are played side by side, each with a third of the money: the best one for a rival is the mean
    of d where it is not 0, and neighbours differ by a tenth to most of that.

    Source:
        Waudby-Smith, Ramdas, "Estimating means of bounded random variables by betting", 2024, arXiv:2010.09686:
        the capital process, its form for sampling without replacement, and mixtures of stakes. Unlike
        theirs, one-sided, for differences in [-1, 1], with three fixed stakes, cut where a loss could take more than
        90 % of the money.

    Args:
        lost: d of the images in the order in which they were drawn, `[n]`.
        of: images there are in all.

    Returns:
        The most money there has been, beginning with 1; infinite once the claim cannot be true any more.
    """
    ahead = np.concatenate([[0], np.cumsum(lost)])  # of the rival, before each image and after the last
    left = of - np.arange(len(ahead))  # images
    if (ahead > left).any():
        return math.inf
    to_come = -ahead[:-1] / left[:-1]  # [n]
    worst = np.maximum(1 + to_come, 1e-9)  # what one image can cost a stake of 1
    stakes = np.minimum(STAKES, LARGEST_STAKE / worst)  # [num_stakes, n]
    log_money = np.log1p(stakes * (lost - to_come)).cumsum(axis=1)
    return float(np.exp(np.minimum(log_money, 100.0)).mean(axis=0).max(initial=1.0))


def strongest(
    objectives: Sequence[Objective], seen: Iterable[Evaluation], partial: Partial
) -> Evaluation | None:
    """The most accurate evaluation in full that is no worse in all other objectives; None if there is none."""
    raced = [o.name for o in objectives].index(RACED)
    known = [
        e
        for e in seen
        if e.ok
        and e.images is not None
        and e.images.right
        and e.images.of == partial.of
        and all(
            o.name == RACED or o.meets(value, bound)
            for o, value, bound in zip(objectives, e.values, partial.values, strict=True)
        )
    ]
    return max(known, key=lambda e: (e.values[raced], e.config.key), default=None)


def _check(partial: Partial, before: int, config: SubnetConfig) -> None:
    n = len(partial.correct)
    if not before < n <= partial.of or len(partial.images) != n:
        raise InvalidInput(
            f"each stage of an evaluation must show more images than the one before, got {n} of {partial.of} after "
            f"{before} for {config.key}"
        )


def _in_full(config: SubnetConfig, partial: Partial) -> Evaluation:
    right = np.zeros(partial.of, dtype=bool)
    right[partial.images] = partial.correct
    images = Images(partial.of, partial.of, partial.calibration, np.packbits(right).tobytes())
    return Evaluation(config, partial.values, spread=partial.spread, images=images)


def _lost_to(rival: Evaluation, partial: Partial) -> np.ndarray:
    """1 where only the rival is right, -1 where only the sub-net is, else 0; `[n]`, as drawn."""
    assert rival.images is not None
    lost: np.ndarray = rival.images.answers()[partial.images].astype(int) - partial.correct
    return lost


def _stopped(
    config: SubnetConfig, partial: Partial, rival: Evaluation, raced: int, racing: Racing
) -> Evaluation:
    lost, of = _lost_to(rival, partial), partial.of
    n = len(lost)
    most = rival.values[raced] - 100 / of
    estimate = min(rival.values[raced] - 100 * float(lost.mean()), most)
    error = 100 * float(lost.std(ddof=1)) / math.sqrt(n) * math.sqrt(1 - n / of) if n > 1 else 100.0
    values, spread = list(partial.values), list(partial.spread or [0.0] * len(partial.values))
    values[raced], spread[raced] = max(estimate, 0.0), error
    sure = f"{100 * (1 - racing.error):g} % confidence"
    reason = f"stopped after {n} of {of} images: worse than {rival.config.key} with {sure}"
    images = Images(n, of, partial.calibration, rival=rival.config.key)
    return Evaluation(config, tuple(values), "ok", reason, "predicted", tuple(spread), images)
