"""What each figure shows, as plain records that can be checked without drawing anything."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from reports.view import BASELINES, Chosen, RunView, Seen, front_of
from search_spaces import InvalidInput
from subnet_search.record.objective import Objective
from subnet_search.record.reranking import Agreement, agreement, rerank
from subnet_search.record.tradeoff import Knee, Step, knee, prices


class Point(NamedTuple):
    """One sub-net in a plane of two of its values."""

    x: float
    y: float
    key: str


class Series(NamedTuple):
    """The sub-nets one searcher asked for; a baseline is what the searcher is compared with."""

    searcher: str
    baseline: bool
    points: tuple[Point, ...]


class Tuned(NamedTuple):
    """A chosen sub-net before and after fine-tuning, as far as measured."""

    label: str
    before: Point | None
    after: Point | None


class Average(NamedTuple):
    """An operating point of a net that decides for each input: a mean cost and its spread over inputs."""

    x: float
    spread: float
    y: float


class ParetoView(NamedTuple):
    """All the Pareto figure shows; nothing about colours or sizes."""

    run: str
    x: str
    y: str
    series: tuple[Series, ...]
    front: tuple[Point, ...]  # ascending in x
    step: str  # "post": between two members the front keeps the left one's y; "pre": the right one's
    chosen: tuple[Tuned, ...]
    full: Point | None
    x_limit: float | None
    y_limit: float | None
    knee: Knee | None
    steps: tuple[Step, ...]  # along the front
    spread: Mapping[str, tuple[float, float]]  # by key, in x and y, of what was measured with one
    averages: tuple[Average, ...] = ()  # of a net that decides for each input

    def points(self) -> tuple[Point, ...]:
        """Every point of the figure."""
        tuned = [point for c in self.chosen for point in (c.before, c.after) if point]
        mean = [Point(one.x, one.y, "") for one in self.averages]
        return (
            *(p for s in self.series for p in s.points),
            *tuned,
            *([self.full] if self.full else ()),
            *mean,
        )


class Placed(NamedTuple):
    """A tuned sub-net in the order of accuracy before and after fine-tuning."""

    label: str
    place_before: int  # 1 is the best; equal ones share a place
    place: int
    before: float
    after: float
    beaten_by: tuple[str, ...]  # labels of those that are no worse in anything and better in something


class RerankView(NamedTuple):
    """What fine-tuning changed in the order of the chosen sub-nets, best tuned one first."""

    name: str
    placed: tuple[Placed, ...]
    agreement: Agreement


class Growth(NamedTuple):
    """How much of the objective space one searcher's first n evaluations dominate."""

    searcher: str
    evaluations: tuple[int, ...]
    percent: tuple[float, ...]  # of the box between the reference and the best value seen of each objective


class Slices(NamedTuple):
    """One ranker's nets of uniform width."""

    ranker: str
    top1_percent: tuple[float, ...]  # by width
    mean: float


class SliceView(NamedTuple):
    """Top-1 against width for each ranking compared, the best mean first and the control last."""

    width_percent: tuple[float, ...]
    macs_percent: tuple[float, ...]
    curves: tuple[Slices, ...]
    taken: str
    images: int


class PathStep(NamedTuple):
    """One sub-net of a path."""

    dropped: str  # a knob; "" for the whole net
    kept: tuple[int, int] | None  # the values of that knob in the sub-net before and in this one
    macs_percent: float  # of the whole net's
    walked: float  # top-1 when it was found
    evaluated: float | None  # top-1 of the search's evaluation
    tuned: bool


class PathView(NamedTuple):
    """A path of nested sub-nets as it was walked, the whole net first, and as the search evaluated it."""

    steps: tuple[PathStep, ...]
    complete: bool
    joined: bool  # whether the sub-nets were trained jointly before they were evaluated
    spent_images: int
    images: int | None  # of search-validation that the walk looked at, where that is known


class HypervolumeView(NamedTuple):
    """Hypervolume against the number of evaluations, and each searcher's at the same number."""

    growth: tuple[Growth, ...]
    reference: Mapping[str, float]
    ideal: Mapping[str, float]
    equal: int  # evaluations that every searcher but the uniform widths has made
    percent_at_equal: Mapping[str, float]


def planes(run: RunView) -> list[tuple[str, str]]:
    """The x and y of each Pareto figure: a cost against a quality, the main ones first.

    The main quality is top-1, else the first objective to be high; the main cost MACs, else the first objective
    to be low. Every further objective is shown against the main one of the other kind.
    """
    names = [objective.name for objective in run.objectives]
    high = [objective.name for objective in run.objectives if objective.goal == "max"]
    y = "top1_percent" if "top1_percent" in names or not names else next(iter(high), names[0])
    low = [objective.name for objective in run.objectives if objective.goal == "min" and objective.name != y]
    x = "macs" if "macs" in low else next(iter(low), "macs")
    further = [(name, y) for name in low if name != x] + [(x, name) for name in high if name != y]
    return [(x, y), *further]


def pareto_view(run: RunView, x: str = "macs", y: str = "top1_percent") -> ParetoView:
    """The evaluated sub-nets, the front of these two values, the chosen sub-nets and the full net.

    Raises:
        InvalidInput: the run has no such values.
    """
    goals = {name: run.goal(name) for name in (x, y)}
    objectives = tuple(Objective(name, goal) for name, goal in goals.items())
    seen = [s for s in run.seen if x in s.values and y in s.values]
    front, members = front_of(objectives, [s for s in seen if s.key in run.front] or seen)
    limits = run.limits()
    return ParetoView(
        run=run.name,
        x=x,
        y=y,
        series=tuple(
            Series(
                name,
                name in BASELINES and run.searchers() != (name,),
                tuple(Point(s.values[x], s.values[y], s.key) for s in seen if s.searcher == name),
            )
            for name in run.searchers()
        ),
        front=tuple(sorted(Point(s.values[x], s.values[y], s.key) for s in members)),
        step="post" if goals[x] == "min" else "pre",
        chosen=tuple(
            Tuned(c.label, _point(c, c.inherited(), x, y), _point(c, c.tuned(), x, y)) for c in run.chosen
        ),
        full=Point(run.full[x], run.full[y], "full") if x in run.full and y in run.full else None,
        x_limit=limits.get(x),
        y_limit=limits.get(y),
        knee=knee(front, x, y),
        steps=tuple(prices(front, x, y)),
        spread={
            s.key: (s.spread.get(x, 0.0), s.spread.get(y, 0.0)) for s in seen if {x, y} & s.spread.keys()
        },
        averages=averages(run) if (x, y) == ("macs", "top1_percent") else (),
    )


def averages(run: RunView) -> tuple[Average, ...]:
    """The operating points of the run's dynamic net, on search-validation: MACs and top-1."""
    points = run.dynamic.get("points", ())
    return tuple(Average(one["mean_macs"], one["spread_macs"], one["top1_percent"]) for one in points)


def rerank_view(run: RunView, name: str = "top1_percent") -> RerankView:
    """The order of the tuned sub-nets by `name`, before and after fine-tuning.

    Raises:
        InvalidInput: fewer than two sub-nets are tuned.
    """
    tuned = {c.key: c for c in run.chosen if name in c.before and name in c.after}
    if len(tuned) < 2:
        raise InvalidInput(f"an order needs two tuned sub-nets or more, run {run.name!r} has {len(tuned)}")
    order = rerank(
        run.objectives,
        {key: c.before for key, c in tuned.items()},
        {key: c.tuned() for key, c in tuned.items()},
        name,
    )
    placed = tuple(
        Placed(
            tuned[one.key].label,
            one.place_before,
            one.place,
            one.before,
            one.after,
            tuple(sorted(tuned[key].label for key in one.beaten_by)),
        )
        for one in order
    )
    return RerankView(name, placed, agreement([p.before for p in placed], [p.after for p in placed]))


def slice_view(run: RunView) -> SliceView:
    """How rankings of the trained network compare.

    Raises:
        InvalidInput: the run has no slice curve, or no ranking yet.
    """
    if not run.ranking:
        raise InvalidInput(f"run {run.name!r} has no ranking yet")
    curve = run.ranking.get("curve")
    if not curve:
        raise InvalidInput(
            f"run {run.name!r} was ranked by {run.ranking['ranker']} alone, without a comparison"
        )
    found = [Slices(name, tuple(top1), fmean(top1)) for name, top1 in curve["top1_percent"].items()]
    return SliceView(
        width_percent=tuple(100 * share for share in curve["shares"]),
        macs_percent=tuple(100 * share for share in curve["macs_share"]),
        curves=tuple(sorted(found, key=lambda one: (one.ranker in BASELINES, -one.mean))),
        taken=run.ranking["ranker"],
        images=curve["images"],
    )


def path_view(run: RunView) -> PathView:
    """The path of a progressive search.

    Raises:
        InvalidInput: there is no path, or no costs of its sub-nets, or it is one of another space.
    """
    if not run.path:
        raise InvalidInput(f"run {run.name!r} has walked no path")
    if run.space is None or run.costs is None:
        raise InvalidInput(f"run {run.name!r} has a path, but not the space and the costs of its sub-nets")
    configs = [element.config for element in run.path]
    whole, *macs = run.costs.macs(run.space.encode([run.space.largest(), *configs])).tolist()
    if strange := {element.dropped for element in run.path[1:]} - set(run.space.names):
        raise InvalidInput(
            f"the path of run {run.name!r} drops {sorted(strange)}, which its space does not have"
        )
    kept = [(a.config[b.dropped], b.config[b.dropped]) for a, b in itertools.pairwise(run.path)]
    later = {seen.key: seen.values.get("top1_percent") for seen in run.seen}
    given, there = run.setting("progressive", "final_images"), run.splits.get("images", {}).get("search_val")
    steps = (
        PathStep(
            element.dropped,
            change,
            100 * cost / whole,
            element.score.top1_percent,
            later.get(element.config.key),
            element.tuned,
        )
        for element, change, cost in zip(run.path, (None, *kept), macs, strict=True)
    )
    return PathView(
        steps=tuple(steps),
        complete=run.path_complete,
        joined=run.joined,
        spent_images=run.path[-1].images,
        images=min(given, there) if given and there else None,
    )


def hypervolume_view(run: RunView, checkpoints: int | None = None) -> HypervolumeView:
    """The growth of each searcher's dominated hypervolume, at up to `checkpoints` numbers of evaluations.

    The reference is the record's; without one it is the worst value seen of each objective. By default 40
    checkpoints; 10 with more than three objectives, where a hypervolume takes a hundred times as long.

    Raises:
        InvalidInput: fewer than two evaluations, or all are equal in one objective.
    """
    names = [objective.name for objective in run.objectives]
    if len(run.seen) < 2 or not names:
        raise InvalidInput(
            f"a hypervolume needs two evaluations or more, run {run.name!r} has {len(run.seen)}"
        )
    checkpoints = checkpoints or (40 if len(names) <= 3 else 10)
    signs = np.array([-1.0 if objective.goal == "max" else 1.0 for objective in run.objectives])
    values = np.array([[s.values[name] for name in names] for s in run.seen])  # [evaluations, objectives]
    ideal = signs * (signs * values).min(axis=0)
    worst = signs * (signs * values).max(axis=0)
    reference = np.array([run.reference.get(name, worst[i]) for i, name in enumerate(names)], dtype=float)
    box = float(np.prod(np.abs(reference - ideal)))
    if box == 0:
        raise InvalidInput(
            f"run {run.name!r} has no hypervolume: its evaluations are all equal in one objective"
        )
    corner = dict(zip(names, reference.tolist(), strict=True))

    def percent(seen: Sequence[Seen]) -> float:
        return 100 * front_of(run.objectives, seen)[0].hypervolume(corner) / box

    mine = {name: [s for s in run.seen if s.searcher == name] for name in run.searchers()}
    equal = min((len(seen) for name, seen in mine.items() if name != "uniform"), default=len(run.seen))
    growth = []
    for name, seen in mine.items():
        counts = sorted(
            {
                *np.linspace(1, len(seen), min(checkpoints, len(seen)), dtype=int).tolist(),
                min(equal, len(seen)),
            }
        )
        growth.append(Growth(name, tuple(counts), tuple(percent(seen[:n]) for n in counts)))
    at_equal = {g.searcher: g.percent[g.evaluations.index(equal)] for g in growth if equal in g.evaluations}
    return HypervolumeView(
        tuple(growth), corner, dict(zip(names, ideal.tolist(), strict=True)), equal, at_equal
    )


def _point(chosen: Chosen, values: Mapping[str, float], x: str, y: str) -> Point | None:
    at = (values.get(x, math.nan), values.get(y, math.nan))
    return None if any(map(math.isnan, at)) else Point(*at, chosen.key)
