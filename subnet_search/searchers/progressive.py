"""Progressive search: from the whole net down, the drop that hurts least is kept, one rung of one layer at a time."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from search_spaces import CostTable, InvalidInput, SearchSpace, SubnetConfig, check_limits, nearest_names
from search_spaces.presets import Ladders, steps_down

from .path import Drop, PathElement, Score
from .time_saved import TimeSaved

Criterion = Literal["accuracy", "loss", "loss_per_mac", "loss_per_ms"]


class Scorer(Protocol):
    """Scores sub-nets with their batch-norm statistics recalibrated; the same config, the same score."""

    @property
    def images(self) -> int:
        """Image forwards spent so far; those of recalibration count, and those of tuning if there is any."""

    def __call__(self, config: SubnetConfig, final: bool) -> Score:
        """The first look at a sub-net, on few images, or the final one, on all of them."""


def walk_down(
    space: SearchSpace,
    costs: CostTable,
    ladders: Ladders,
    scorer: Scorer,
    *,
    criterion: Criterion = "loss_per_mac",
    smallest_macs_share: float = 0.12,
    screen: int | None = 6,
    finalists: int = 6,
    predict: Callable[[SubnetConfig], float] | None = None,
    latency: Callable[[SubnetConfig], float] | None = None,
    tune: Callable[[PathElement], Score | None] | None = None,
    threshold: float | None = None,
    relative_threshold: float | None = None,
    begun: Sequence[PathElement] = (),
    keep: Callable[[Sequence[PathElement]], None] | None = None,
) -> list[PathElement]:
    """Finds a nested path from the whole net down: in each step the drop of one rung that is worth most is kept.

    To score every drop in every step is dear and hardly needed: what a drop adds to the loss changes slowly. Each
    step therefore orders the drops by what they were last seen to add (`increases`) and looks at the best `screen` and
    at those never seen: at once finally, or, if these are more than `finalists`, first briefly, and finally at the
    best.

    Source:
        Yang, He, Cao, Fan, "A Progressive Sub-Network Searching Framework for Dynamic Inference", 2020,
        arXiv:2009.05681. Unlike the authors, who score all drops and keep the most accurate one, the screening,
        blocks as drops, and what the loss increases per multiply-add.

    Args:
        space: whose largest member the path begins with.
        costs: the space's cost table.
        ladders: the rungs of each knob, from `search_spaces.presets.ladders`.
        scorer: looks at sub-nets and counts the images.
        criterion: the drop kept is that with the highest accuracy (of equal ones the lowest loss), the lowest
            loss, or the lowest increase of the loss per multiply-add or per millisecond saved.
        smallest_macs_share: no element has less than this share of the whole net's multiply-adds.
        screen: how many drops seen before get a look in each step; None: every drop gets a final look.
        finalists: how many of these get a final look; if they are more, all get a first look before.
        predict: the expected increase of the loss over the whole net; orders the drops never seen, which then get
            no first look before it is their turn. Its scale does not matter: it is fitted to the increases seen.
        latency: milliseconds of a sub-net, for the criterion "loss_per_ms". Those with a final look are timed, each
            once; a first look and the screening go by what a knob's drops were last seen to save for each
            multiply-add. A drop counts as saving at least 0.5 % of the latency before it, even where it was
            measured not to: about so much a measurement may be off.
        tune: called with an element below the threshold before it is kept; the score of its tuned weights, or
            None if it left them alone. Weights tuned for one element are those of all later ones.
        threshold: in percent top-1.
        relative_threshold: the threshold as a share of the whole net's top-1.
        begun: the first elements of a path that was cut off; it goes on to what it would have become.
        keep: called with the path after each new element.

    Raises:
        InvalidInput: before anything is scored, for numbers that make no sense, a table or a begun path of another
            space or other ladders, no possible drop, or a criterion without its latency; after the whole net was, for
            a threshold above its accuracy.
    """
    check_limits(space, costs, {})
    _check_amounts(criterion, smallest_macs_share, screen, finalists)
    _check_latency(criterion, latency)
    _check_thresholds(threshold, relative_threshold, tune)
    drops = _Drops(space, costs, ladders, smallest_macs_share)
    if not drops.below(space.largest()):
        raise InvalidInput(
            f"no drop of the ladders leaves {smallest_macs_share:.0%} of the multiply-adds, so there is no path; "
            "lower smallest_macs_share, or give ladders of this space with smaller steps"
        )
    expected, times = _Expected(drops, predict), None if latency is None else TimeSaved(latency)

    def learn(before: PathElement, after: PathElement) -> None:
        expected.learn(before, after)
        if times:
            times.learn(before, after, drops.below(before.config))

    steps = drops.pairs(begun)
    if times and begun:
        times.recall(begun[0])
    for before, after in steps:
        learn(before, after)
    look = _Look(scorer, criterion, screen, finalists, expected, times)
    path = list(begun)
    spent_before = scorer.images - (path[-1].images if path else 0)

    def add(element: PathElement) -> None:
        path.append(dataclasses.replace(element, images=scorer.images - spent_before))
        if keep:
            keep(path)

    score = path[0].score if path else scorer(space.largest(), True)
    least = least_accuracy(score, threshold, relative_threshold)
    if not path:
        whole_ms = {"": times.ms(space.largest())} if times else {}
        add(PathElement(space.largest(), score, "", 0, latencies_ms=whole_ms))
    while candidates := drops.below(path[-1].config):
        element = look.best(path[-1], candidates)
        learn(path[-1], element)
        if tune and element.score.top1_percent < least and (tuned := tune(element)):
            element = dataclasses.replace(element, score=tuned, tuned=True, first_loss=None)
        add(element)
    return path


class _Drops:
    """The drops that a path may take."""

    def __init__(self, space: SearchSpace, costs: CostTable, ladders: Ladders, macs_share: float) -> None:
        self._space, self._costs, self._ladders = space, costs, ladders
        self._least_macs = macs_share * self._macs([space.largest()])[0]

    def _macs(self, configs: Sequence[SubnetConfig]) -> list[int]:
        macs: list[int] = self._costs.macs(self._space.encode(configs)).tolist()
        return macs

    def below(self, config: SubnetConfig) -> list[Drop]:
        """All drops from `config`, in knob order."""
        steps = steps_down(self._space, config, self._ladders)
        here, *there = self._macs([config, *(smaller for _, smaller in steps)])
        found = [Drop(*step, here - macs) for step, macs in zip(steps, there, strict=True)]
        return [drop for drop in found if here - drop.saved_macs >= self._least_macs]

    def pairs(self, path: Sequence[PathElement]) -> list[tuple[PathElement, PathElement]]:
        """The path's steps; `InvalidInput` when it is none of these drops."""
        if path and (path[0].config != self._space.largest() or path[0].dropped):
            raise InvalidInput(
                f"a path begins with the whole net, this one with {path[0].config.key}: "
                "begin anew if the space has changed"
            )
        steps = list(itertools.pairwise(path))
        for place, (before, element) in enumerate(steps, start=1):
            step = (element.dropped, element.config)
            if (
                step not in [drop[:2] for drop in self.below(before.config)]
                or step[0] not in element.increases
            ):
                raise InvalidInput(
                    f"element {place} of the path begun is not the one before with {element.dropped!r} one rung down; "
                    "go on with the space, ladders and smallest_macs_share it was begun with, or begin anew"
                )
        return steps


class _Expected:
    """What a drop is expected to add to the loss: what the knob's drop was last seen to add, or a prediction."""

    def __init__(self, drops: _Drops, predict: Callable[[SubnetConfig], float] | None) -> None:
        self._drops, self._predict = drops, predict
        self._seen: dict[str, float] = {}
        self._sum_seen = self._sum_predicted = 0.0

    def learn(self, before: PathElement, after: PathElement) -> None:
        """Takes what was seen in the step from one element to the next."""
        drops = {drop.knob: drop for drop in self._drops.below(before.config)}
        for knob, drop in drops.items():
            if knob in after.increases:
                self._seen[knob] = after.increases[knob]
                if self._predict:
                    self._sum_seen += max(0.0, after.increases[knob])
                    self._sum_predicted += self._predicted(before.config, drop)
        for drop in self._drops.below(after.config):
            # a block around the layer that was narrowed: without it the sub-net is what it was, and less far away
            if drop.knob in self._seen and drop.config == drops[drop.knob].config:
                self._seen[drop.knob] -= after.increases[after.dropped]

    def __call__(self, config: SubnetConfig, drop: Drop) -> float | None:
        """The expected increase by `drop` from `config`; None where nothing is known."""
        if drop.knob in self._seen or self._predict is None:
            return self._seen.get(drop.knob)
        scale = self._sum_seen / self._sum_predicted if self._sum_predicted > 0 else 1.0
        return scale * self._predicted(config, drop)

    def _predicted(self, config: SubnetConfig, drop: Drop) -> float:
        """Not below 0: a block whose layers were narrowed may be predicted to win by being skipped."""
        return max(0.0, self._predict(drop.config) - self._predict(config)) if self._predict else 0.0


@dataclass(frozen=True)
class _Look:
    """How the best of some drops is found."""

    scorer: Scorer
    criterion: Criterion
    screen: int | None
    finalists: int
    expected: _Expected
    times: TimeSaved | None

    def best(self, last: PathElement, drops: Sequence[Drop]) -> PathElement:
        """The best of the drops from `last`; its images are not known here."""
        increases: dict[str, float] = {}
        firsts: dict[str, Score] = {}
        if self.screen is not None:
            drops = self._screened(last.config, drops, self.screen)
        if self.screen is not None and len(drops) > self.finalists:
            before = last.first_loss
            if before is None:
                before = self.scorer(last.config, False).loss
            firsts = {drop.knob: self.scorer(drop.config, False) for drop in drops}
            increases = {knob: score.loss - before for knob, score in firsts.items()}
            drops = sorted(
                drops,
                key=lambda d: self._badness(firsts[d.knob], increases[d.knob], self._may_save(d)),
            )
            drops = drops[: self.finalists]
        finals = {drop.knob: self.scorer(drop.config, True) for drop in drops}
        increases |= {knob: score.loss - last.score.loss for knob, score in finals.items()}
        times_ms = {drop.knob: self.times.ms(drop.config) for drop in drops} if self.times else {}
        best = min(
            drops, key=lambda d: self._badness(finals[d.knob], increases[d.knob], self._saves(last.config, d))
        )
        first_loss = firsts[best.knob].loss if firsts else None
        return PathElement(
            best.config, finals[best.knob], best.knob, 0, False, first_loss, increases, times_ms
        )

    def _screened(self, config: SubnetConfig, drops: Sequence[Drop], most: int) -> list[Drop]:
        """The drops worth a look: those nothing is known of, and the `most` that promise most."""
        promises: dict[str, float] = {}
        for drop in drops:
            increase = self.expected(config, drop)
            if increase is not None:
                by_saving = self.criterion in ("loss_per_mac", "loss_per_ms")
                promises[drop.knob] = rate(increase, self._may_save(drop)) if by_saving else increase
        looked_at = set(sorted(promises, key=promises.__getitem__)[:most])
        return [drop for drop in drops if drop.knob not in promises or drop.knob in looked_at]

    def _may_save(self, drop: Drop) -> float:
        """Multiply-adds, or milliseconds by guess."""
        return self.times.expected(drop) if self.times else drop.saved_macs

    def _saves(self, config: SubnetConfig, drop: Drop) -> float:
        """Multiply-adds, or milliseconds by the clock."""
        return self.times.saved(config, drop.config) if self.times else drop.saved_macs

    def _badness(self, score: Score, increase: float, saved: float) -> tuple[float, ...]:
        if self.criterion == "accuracy":
            return -score.top1_percent, score.loss
        return (score.loss if self.criterion == "loss" else rate(increase, saved),)


def rate(lost: float, saved: float) -> float:
    """The price of a drop, smaller is better: what is lost per unit saved.

    Where something is won instead, the drop that wins and saves more is the better one: a ratio would prefer the
    one that saves less.
    """
    if lost <= 0:
        return lost * max(saved, 0.0)
    return lost / saved if saved > 0 else math.inf


def _check_amounts(criterion: str, macs_share: float, screen: int | None, finalists: int) -> None:
    criteria = get_args(Criterion)
    if criterion not in criteria:
        hint = nearest_names(criterion, criteria)
        raise InvalidInput(f"the criterion must be one of {', '.join(criteria)}, got {criterion!r}{hint}")
    if isinstance(macs_share, bool) or not 0 <= macs_share < 1:
        raise InvalidInput(f"smallest_macs_share must be from 0 to below 1, got {macs_share!r}")
    for name, count in (("screen", screen), ("finalists", finalists)):
        if count is None and name == "screen":
            continue
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            way_out = "; None gives every drop a final look" if name == "screen" else ""
            raise InvalidInput(f"{name} must be a whole number from 1, got {count!r}{way_out}")


def _check_latency(criterion: str, latency: object) -> None:
    if criterion == "loss_per_ms" and latency is None:
        raise InvalidInput(
            'the criterion "loss_per_ms" needs latency=, a callable that says how many milliseconds a sub-net takes; '
            'give it, or choose "loss_per_mac"'
        )
    if criterion != "loss_per_ms" and latency is not None:
        raise InvalidInput(
            f'latency= decides only by the criterion "loss_per_ms", got {criterion!r}; leave one out'
        )


def _check_thresholds(absolute: float | None, relative: float | None, tune: object) -> None:
    if absolute is not None and relative is not None:
        raise InvalidInput(
            f"give threshold= or relative_threshold=, not both; got {absolute!r} and {relative!r}"
        )
    if absolute is not None and (isinstance(absolute, bool) or not 0 < absolute <= 100):
        raise InvalidInput(f"threshold must be a percentage above 0 and at most 100, got {absolute!r}")
    if relative is not None and (isinstance(relative, bool) or not 0 < relative <= 1):
        raise InvalidInput(
            f"relative_threshold must be a share of the whole net's accuracy above 0 and at most 1, got {relative!r}"
        )
    if (tune is None) != (absolute is None and relative is None):
        raise InvalidInput("a threshold and tune= go together: it says below which accuracy tune is called")


def least_accuracy(whole: Score, absolute: float | None, relative: float | None) -> float:
    """The accuracy below which is tuned.

    Raises:
        InvalidInput: when even the whole net has less.
    """
    if relative is not None:
        return relative * whole.top1_percent
    if absolute is None:
        return -math.inf
    if absolute > whole.top1_percent:
        raise InvalidInput(
            f"no sub-net can be tuned to threshold={absolute:g} % top-1: the whole net has {whole.top1_percent:.2f} %; "
            "choose a lower one, or relative_threshold=, a share of the whole net's"
        )
    return absolute
