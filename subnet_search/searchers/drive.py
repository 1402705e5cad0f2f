"""Runs a search: controls first, then the searcher; and goes on where a record ends."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from typing import Literal

from tqdm import tqdm

from search_spaces import COST_NAMES, CostTable, InvalidInput, SearchSpace, SubnetConfig, nearest_names
from subnet_search.progress import progress as progress_bar
from subnet_search.record import (
    Evaluation,
    Journal,
    Objective,
    ParetoFront,
    Run,
    check_objectives,
    worst_values,
)

from .budget import Budget
from .controls import Listed, uniform_configs
from .feasible import Feasible, SpaceExhausted
from .guided import GuidedSearcher
from .optuna_search import OptunaSearcher
from .racing import Racing, can_race, race
from .recorder import Evaluator, Recorder
from .searcher import Searcher, make_searcher

UNIFORM_SHARE, RANDOM_SHARE, MOST_UNIFORM = 0.25, 0.2, 9
KEEP_EVERY_S = 5.0
CONTROLS = ("uniform", "random")
CHANCE = 2**31  # added to the seed of the random control: NSGA would begin with the same sub-nets

Limits = Mapping[str, float]


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        front: the evaluations that meet all limits and that no other one beats.
        evaluations: every sub-net this search looked at, in order, each once; failed and stopped ones too.
        nearest: when no evaluation meets the limits on measured objectives: the best value found for each.
        ended: what ended it: a bound of the budget, or "exhausted" when every feasible sub-net was seen, or the
            searcher's path has come to its end.
    """

    front: ParetoFront
    evaluations: tuple[Evaluation, ...]
    nearest: Mapping[str, float] = field(default_factory=dict)
    ended: Literal["evaluations", "minutes", "exhausted"] = "evaluations"


def search(
    space: SearchSpace,
    evaluator: Evaluator,
    searcher: str | Searcher = "guided",
    *,
    name: str = "",
    budget: Budget,
    limits: Limits | None = None,
    costs: CostTable | None = None,
    seed: int = 0,
    run: Run | None = None,
    context: str = "",
    progress: bool = True,
    timeout_s: float | None = None,
    racing: Racing | None = None,
    keep: Callable[[SearchResult], None] | None = None,
    clock_s: Callable[[], float] = time.perf_counter,
) -> SearchResult:
    """Searches for the sub-nets that no other one beats.

    The controls come first, inside the budget: uniform widths (up to 9, at most a quarter) and random sub-nets
    (a fifth), recorded under "uniform" and "random". The searcher does not learn from them. What the record knows
    under the same context is taken from there instead of being evaluated again. So the same call on the run of a
    search that was cut off repeats its beginning for free and goes on, and its result is that of the unbroken
    search; a larger budget continues in the same way. "uniform" and "random" have no controls of their own kind
    besides, "uniform" none at all; a searcher of your own always has both.

    Args:
        space: what may be chosen.
        evaluator: `(config) -> Evaluation`, with `.objectives`; an exception is recorded as a failure.
        searcher: guided, random, nsga2, nsga3, tpe, gp, qmc, progressive or uniform; or one of your own. That is asked
            again when a search goes on, must then propose the same, and keep to the limits on costs.
        name: under which a searcher of your own is recorded, not one of the controls' names; by default its class.
        budget: when to stop; a search that has seen every feasible sub-net stops earlier.
        limits: bounds by name. Costs of `costs` are upper bounds that every proposal meets. On a measured
            objective the bound is the worst allowed value (the least one when it is to be high), and only decides
            who may enter the front.
        costs: the space's cost table, needed for limits on costs.
        seed: same seed and same values, same proposals.
        run: an open run folder whose journal keeps the record; None keeps none.
        context: replaces the evaluator's own `context`.
        progress: whether a bar is shown on stderr.
        timeout_s: how long one evaluation may take before it is recorded as failed; None: for ever. Holds in the
            main thread of systems with SIGALRM, and only interrupts Python code.
        racing: evaluations stop once they show that a sub-net is beaten, see `race`; members of the front never do.
        keep: is given the result so far, after the first evaluation, then every few seconds, and on Ctrl-C.
        clock_s: a clock in seconds.

    Raises:
        InvalidInput: before anything is evaluated, for a limit that is unknown or that no sub-net meets, an
            unknown searcher, one of your own under a control's name, a timeout that is not positive, an evaluator that
            cannot be raced, or a run that is open for reading only; later, for a proposal of a searcher of your own
            that does not meet the limits.
        SubnetSearchError: when ten evaluations in a row fail; all are recorded.
    """
    if timeout_s is not None and not timeout_s > 0:
        raise InvalidInput(f"timeout_s must be a positive number of seconds or None, got {timeout_s!r}")
    objectives = check_objectives(evaluator.objectives)
    cost_limits, measured_limits = _split_limits(limits or {}, objectives, costs)
    feasible = Feasible(space, costs, cost_limits)
    chosen: Searcher
    if isinstance(searcher, str):
        name = searcher
        chosen = make_searcher(name, space, objectives, seed=seed, limits=cost_limits, costs=costs)
    else:
        name = name or type(searcher).__name__
        if name in CONTROLS:
            raise InvalidInput(
                f"a searcher of your own must not be named {name!r}: the record has a control under that name; "
                "give another name="
            )
        chosen = _Checked(searcher, feasible)
    chance = make_searcher(
        "random", space, objectives, seed=(seed + CHANCE) % 2**32, limits=cost_limits, costs=costs
    )
    context = context or getattr(evaluator, "context", "")
    raced = None
    if racing is not None and can_race(evaluator):
        context, raced = racing.context(context), partial(race, evaluator, racing=racing)
    call = [name, seed, cost_limits, [(o.name, o.goal) for o in objectives], context]
    digest = hashlib.sha256(json.dumps(call, sort_keys=True).encode()).hexdigest()[:12]
    journal = run.journal if run else Journal()
    recorder = Recorder(evaluator, journal, context, digest, clock_s, timeout_s, raced)
    most_uniform = min(MOST_UNIFORM, _part(budget.evaluations, UNIFORM_SHARE) or MOST_UNIFORM)
    result = partial(_result, objectives, recorder.found, measured_limits)
    keeper = None if keep is None else _Keeper(keep, result, clock_s)
    with _Search(recorder, budget, clock_s, f"search {name}", progress, keeper) as search:
        if name != "uniform":
            search.follow(
                "uniform", Listed(uniform_configs(feasible, most_uniform)), time_share=UNIFORM_SHARE
            )
        if name not in CONTROLS:
            most, time_share = _part(budget.evaluations, RANDOM_SHARE), UNIFORM_SHARE + RANDOM_SHARE
            search.follow("random", chance, most=most, time_share=time_share)
        search.remember_controls()
        search.follow(name, chosen)
        ended = search.ended()
    return dataclasses.replace(result(), ended=ended)


class _Checked:
    """A searcher of the caller's own, whose proposals are made canonical and looked at before they are evaluated."""

    def __init__(self, searcher: Searcher, feasible: Feasible) -> None:
        self._searcher, self._feasible = searcher, feasible

    def tell(self, evaluation: Evaluation) -> None:
        """Hands it on."""
        self._searcher.tell(evaluation)

    def ask(self) -> SubnetConfig:
        """Its next proposal; `InvalidInput` for one that does not meet the limits."""
        config = self._searcher.ask()
        self._feasible.space.check(config)
        config = self._feasible.space.canonical(config)
        if not self._feasible.allows(config):
            raise InvalidInput(
                f"{type(self._searcher).__name__} proposed {config.key}, which does not meet the limits "
                f"{dict(self._feasible.limits or {})}; let it propose only what does, or loosen them"
            )
        return config


class _Keeper:
    """Hands the result so far on: the first one, then at most one every few seconds."""

    def __init__(
        self,
        keep: Callable[[SearchResult], None],
        result: Callable[[], SearchResult],
        clock_s: Callable[[], float],
    ) -> None:
        self._keep, self._result, self._clock_s = keep, result, clock_s
        self._due_s = clock_s()

    def now(self) -> None:
        """Hands it on."""
        self._keep(self._result())
        self._due_s = self._clock_s() + KEEP_EVERY_S

    def at_times(self) -> None:
        """Hands it on if that is due."""
        if self._clock_s() >= self._due_s:
            self.now()


class _Search:
    """One search under way, and its bar."""

    def __init__(
        self,
        recorder: Recorder,
        budget: Budget,
        clock_s: Callable[[], float],
        what: str,
        shown: bool,
        keeper: _Keeper | None,
    ) -> None:
        self._recorder, self._budget, self._clock_s, self._keeper = recorder, budget, clock_s, keeper
        self._start_s = clock_s()
        self._front = ParetoFront(recorder.objectives, ())
        self._reference: dict[str, float] = {}
        self._controls_volume = self._volume = 0.0
        self._bar: tqdm[object] = progress_bar(budget.evaluations, what, "subnet", enabled=shown)

    def __enter__(self) -> _Search:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bar.close()
        if self._keeper and self._recorder.found and kind and issubclass(kind, KeyboardInterrupt):
            self._keeper.now()

    def ended(self) -> Literal["evaluations", "minutes", "exhausted"]:
        """What ended the search."""
        most = self._budget.evaluations
        if most is not None and len(self._recorder.found) >= most:
            return "evaluations"
        return "minutes" if self._done(None, 1.0) else "exhausted"

    def follow(
        self, name: str, searcher: Searcher, *, most: int | None = None, time_share: float = 1.0
    ) -> None:
        """Evaluates what `searcher` proposes until `most` new sub-nets, that share of the time, or its end."""
        goal = None if most is None else len(self._recorder.found) + most
        turn = 0
        while not self._done(goal, time_share):
            try:
                config = self._replayed(name, searcher, turn) or searcher.ask()
            except SpaceExhausted:
                return
            before = len(self._recorder.found)
            evaluation = self._recorder.evaluate(config, name, turn)
            searcher.tell(evaluation)
            turn += 1
            if self._keeper:
                self._keeper.at_times()
            self._show(evaluation, len(self._recorder.found) - before)

    def remember_controls(self) -> None:
        """From here on the bar compares the front's hypervolume with that of what was found so far."""
        self._reference = worst_values(self._recorder.objectives, self._recorder.found.values())
        if self._reference:
            self._controls_volume = self._volume = self._front.hypervolume(self._reference)

    def _replayed(self, name: str, searcher: Searcher, turn: int) -> SubnetConfig | None:
        asked = self._recorder.asked(name, turn)
        if asked and isinstance(searcher, OptunaSearcher | GuidedSearcher):
            return searcher.replay(asked)
        return None

    def _done(self, goal: int | None, time_share: float) -> bool:
        """Shares of the time count evaluations alone: a resumed search must come to the same conclusion."""
        count, seconds = len(self._recorder.found), self._recorder.seconds
        if count == 0:
            return False
        if goal is not None and count >= goal:
            return True
        if self._budget.evaluations is not None and count >= self._budget.evaluations:
            return True
        if self._budget.minutes is None:
            return False
        return (
            seconds >= time_share * 60 * self._budget.minutes or self._spent_s() >= 60 * self._budget.minutes
        )

    def _spent_s(self) -> float:
        besides = self._clock_s() - self._start_s - self._recorder.seconds_here
        return self._recorder.seconds + besides

    def _show(self, evaluation: Evaluation, new: int) -> None:
        if self._bar.disable:
            return
        front = ParetoFront.of(self._front.objectives, [*self._front, evaluation])
        if front != self._front and self._controls_volume > 0:
            self._volume = front.hypervolume(self._reference)
        self._front = front
        notes = [f"front {len(front)}"]
        if told := images_told(self._recorder.found.values()):
            notes.append(told)
        if self._controls_volume > 0:
            notes.append(f"hypervolume {self._volume / self._controls_volume:.2f} x controls")
        if self._budget.minutes is not None:
            notes.append(f"{self._spent_s() / 60:.1f} of {self._budget.minutes:g} min")
        self._bar.set_postfix_str(", ".join(notes), refresh=False)
        self._bar.update(new)


def images_told(evaluations: Iterable[Evaluation]) -> str:
    """How many images evaluations cost beside what they cost in full; "" where nothing is counted."""
    counted = [e.images for e in evaluations if e.images is not None]
    full = sum(images.in_full_spent for images in counted)
    spent = sum(images.spent for images in counted)
    return f"{100 * spent / full:.0f} % of the images" if full else ""


def _part(evaluations: int | None, share: float) -> int | None:
    return None if evaluations is None else max(1, int(evaluations * share))


def _split_limits(
    limits: Limits, objectives: Sequence[Objective], costs: CostTable | None
) -> tuple[dict[str, float], dict[str, float]]:
    """Limits met by construction, and limits that an evaluation has to meet."""
    measured = {o.name for o in objectives} - (set() if costs is None else set(COST_NAMES))
    for name, bound in limits.items():
        if name not in measured and name not in COST_NAMES:
            known = sorted({*measured, *COST_NAMES})
            hint = nearest_names(name, known)
            raise InvalidInput(f"a limit must be on one of {', '.join(known)}, got {name!r}{hint}")
        if isinstance(bound, bool) or not isinstance(bound, Real) or not math.isfinite(bound):
            raise InvalidInput(f"the limit on {name} must be a finite number, got {bound!r}")
    return (
        {name: float(bound) for name, bound in limits.items() if name not in measured},
        {name: float(bound) for name, bound in limits.items() if name in measured},
    )


def _result(
    objectives: tuple[Objective, ...], found: Mapping[str, Evaluation], limits: Limits
) -> SearchResult:
    evaluations = tuple(found.values())
    bounds = [(i, o, limits[o.name]) for i, o in enumerate(objectives) if o.name in limits]
    good = [e for e in evaluations if e.ok and e.in_full]
    meeting = [e for e in good if all(o.meets(e.values[i], bound) for i, o, bound in bounds)]
    nearest = (
        {}
        if meeting
        else {o.name: min((e.values[i] for e in good), key=o.loss) for i, o, _ in bounds if good}
    )
    return SearchResult(ParetoFront.of(objectives, meeting), evaluations, nearest)
