"""Runs a search: controls first, then the searcher; and goes on where a record ends."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from typing import Literal

from search_spaces import COST_NAMES, CostTable, InvalidInput, SearchSpace, SubnetConfig, nearest_names
from subnet_search.record import Evaluation, Journal, Objective, ParetoFront, Run, check_objectives

from .budget import Budget
from .claims import SHARED, Claims, NobodyElse
from .controls import Listed, uniform_configs
from .feasible import Feasible
from .loop import CONTROLS, Loop
from .pool import EvaluatorFactory, Pool, Workers, open_pool
from .racing import Racing
from .recorder import Evaluator, Recorder, TooManyFailures
from .searcher import Searcher, make_searcher
from .shown import Shown

UNIFORM_SHARE, RANDOM_SHARE, MOST_UNIFORM = 0.25, 0.2, 9
KEEP_EVERY_S = 5.0
CHANCE = 2**31  # added to the seed of the random control: NSGA would begin with the same sub-nets

Limits = Mapping[str, float]


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        front: the evaluations that meet all limits and that no other one beats.
        evaluations: every sub-net this search looked at, in order, each once; failed and stopped ones too.
        nearest: when no evaluation meets the limits on measured objectives: the best value found for each.
        ended: what ended it: a bound of the budget, or "exhausted" when every feasible sub-net was seen, the
            searcher's path has come to its end, or a searcher of your own proposes nothing new any more.
    """

    front: ParetoFront
    evaluations: tuple[Evaluation, ...]
    nearest: Mapping[str, float] = field(default_factory=dict)
    ended: Literal["evaluations", "minutes", "exhausted"] = "evaluations"


def search(
    space: SearchSpace,
    evaluator: Evaluator | EvaluatorFactory | Pool,
    searcher: str | Searcher = "guided",
    *,
    name: str = "",
    budget: Budget,
    limits: Limits | None = None,
    costs: CostTable | None = None,
    seed: int = 0,
    workers: int | Workers = 1,
    run: Run | None = None,
    context: str = "",
    progress: bool = True,
    timeout_s: float | None = None,
    racing: Racing | None = None,
    keep: Callable[[SearchResult], None] | None = None,
    claims: Claims | None = None,
    clock_s: Callable[[], float] = time.perf_counter,
) -> SearchResult:
    """Searches for the sub-nets that no other one beats.

    The controls come first, inside the budget: uniform widths (up to 9, at most a quarter) and random sub-nets
    (a fifth), recorded under "uniform" and "random". The searcher does not learn from them. What the record knows
    under the same context is taken from there instead of being evaluated again. So the same call on the run of a
    search that was cut off repeats its beginning for free and goes on, and its result is that of the unbroken
    search; a larger budget continues in the same way. "uniform" and "random" have no controls of their own kind
    besides, "uniform" none at all; a searcher of your own always has both.

    With several workers as many sub-nets are under way at a time. Their answers are told as they come, which makes what
    is proposed next depend on chance; the journal keeps that order, so a search that goes on repeats it.

    Args:
        space: what may be chosen.
        evaluator: `(config) -> Evaluation`, with `.objectives`; an exception is recorded as a failure. With several
            workers it is an `EvaluatorFactory`; a `Pool` of your own evaluates in its own way, whatever `workers` is.
        searcher: guided, random, nsga2, nsga3, tpe, gp, qmc, progressive or uniform; or one of your own. That is asked
            again when a search goes on, must then propose the same, and keep to the limits on costs.
        name: under which a searcher of your own is recorded, not one of the controls' names; by default its class.
        budget: when to stop; a search that has seen every feasible sub-net stops earlier.
        limits: bounds by name. Costs of `costs` are upper bounds that every proposal meets. On a measured
            objective the bound is the worst allowed value (the least one when it is to be high): it decides who may
            enter the front, and "guided" keeps to it as well as it can predict.
        costs: the space's cost table, needed for limits on costs.
        seed: same seed and same values, same proposals.
        workers: how many processes evaluate, or `Workers` on a Ray cluster; 1 is this process.
        run: an open run folder whose journal keeps the record; None keeps none.
        context: replaces the evaluator's own `context`.
        progress: whether a bar is shown on stderr.
        timeout_s: how long one evaluation may take before it is recorded as failed; None: for ever. In this process
            it holds in the main thread of systems with SIGALRM, and only interrupts Python code; a worker is ended.
        racing: evaluations stop once they show that a sub-net is beaten, see `race`; members of the front never do.
        keep: is given the result so far, after the first evaluation, then every few seconds, and on Ctrl-C or an error.
        claims: this search's part in a study that other drivers search too, such as `StudyClaims` on a storage. The
            budget's evaluations are then those of the study: what others found counts, and is on record here under the
            searcher "storage", at no cost.
        clock_s: a clock in seconds.

    Raises:
        InvalidInput: before anything is evaluated, for a limit that is unknown or that no sub-net meets, an
            unknown searcher, one of your own under a control's name, a timeout that is not positive, an evaluator that
            cannot be raced or cannot travel to workers, workers that cannot work, or a run that is open for reading
            only; later, for a proposal of a searcher of your own that does not meet the limits.
        TooManyFailures: when ten evaluations in a row fail, or more where many have failed before; its `result` is what
            was found. They are evaluated again when the same search goes on.
        SubnetSearchError: when no worker is left; all is recorded.
    """
    if timeout_s is not None and not timeout_s > 0:
        raise InvalidInput(f"timeout_s must be a positive number of seconds or None, got {timeout_s!r}")
    claims = claims or NobodyElse()
    with closing(open_pool(evaluator, workers, timeout_s, racing, clock_s)) as pool:
        objectives = check_objectives(pool.objectives)
        cost_limits, measured_limits = _split_limits(limits or {}, objectives, costs)
        feasible = Feasible(space, costs, cost_limits)
        make = partial(
            make_searcher,
            space=space,
            objectives=objectives,
            limits=cost_limits,
            costs=costs,
            bounds=measured_limits,
        )
        if isinstance(searcher, str):
            name, chosen = searcher, make(searcher, seed=seed)
        else:
            name, chosen = _own_name(searcher, name), _Checked(searcher, feasible)
        chance = make("random", seed=(seed + CHANCE) % 2**32)
        context = context or pool.context
        context = context if racing is None else racing.context(context)
        call = [name, seed, cost_limits, [(o.name, o.goal) for o in objectives], context]
        call += [measured_limits] if measured_limits else []
        digest = hashlib.sha256(json.dumps(call, sort_keys=True).encode()).hexdigest()[:12]
        journal = run.journal if run else Journal()
        recorder = Recorder(objectives, journal, context, digest, raced=racing is not None)
        most_uniform = min(MOST_UNIFORM, _part(budget.evaluations, UNIFORM_SHARE) or MOST_UNIFORM)
        result = partial(_result, objectives, recorder.found, measured_limits)
        keeper = _Keeper(keep, result, clock_s)
        shown = Shown(f"search {name}", objectives, budget, enabled=progress)
        loop = Loop(recorder, pool, budget, clock_s, keeper.at_times, shown, claims, feasible.allows)
        loop.recall()
        with closing(shown), keeper, closing(claims):
            own = [(found, seconds) for who, found, seconds in recorder.on_record() if who != SHARED]
            claims.open(space, objectives, context, own)
            if name != "uniform":
                listed = Listed(uniform_configs(feasible, most_uniform))
                loop.follow("uniform", listed, time_share=UNIFORM_SHARE)
            if name not in CONTROLS:
                most, time_share = _part(budget.evaluations, RANDOM_SHARE), UNIFORM_SHARE + RANDOM_SHARE
                loop.follow("random", chance, most=most, time_share=time_share)
            shown.compare()
            loop.follow(name, chosen)
            loop.drain()
        return dataclasses.replace(result(), ended=loop.ended())


def _own_name(searcher: Searcher, name: str) -> str:
    """Under which a searcher of the caller's own is recorded."""
    name = name or type(searcher).__name__
    if name in CONTROLS:
        raise InvalidInput(
            f"a searcher of your own must not be named {name!r}: the record has a control under that name; "
            "give another name="
        )
    return name


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
        keep: Callable[[SearchResult], None] | None,
        result: Callable[[], SearchResult],
        clock_s: Callable[[], float],
    ) -> None:
        self._keep, self._result, self._clock_s = keep, result, clock_s
        self._due_s = clock_s()

    def __enter__(self) -> _Keeper:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        """On Ctrl-C and errors, what there is."""
        if isinstance(error, TooManyFailures):
            error.result = self._result()
        if kind and self._result().evaluations:
            unimportant = (
                () if issubclass(kind, KeyboardInterrupt) else (Exception,)
            )  # beside the error itself
            with suppress(*unimportant):
                self.now()

    def now(self) -> None:
        """Hands it on."""
        if self._keep is not None:
            self._keep(self._result())
        self._due_s = self._clock_s() + KEEP_EVERY_S

    def at_times(self) -> None:
        """Hands it on if that is due."""
        if self._keep is not None and self._clock_s() >= self._due_s:
            self.now()


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
