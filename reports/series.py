"""What each figure shows, as plain records that can be checked without drawing anything."""

from __future__ import annotations

import heapq
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from reports.view import BASELINES, Chosen, RunView, Seen, front_of
from search_spaces import InvalidInput
from subnet_search.record.objective import Objective


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

    def points(self) -> tuple[Point, ...]:
        """Every point of the figure."""
        tuned = [point for c in self.chosen for point in (c.before, c.after) if point]
        return (*(p for s in self.series for p in s.points), *tuned, *([self.full] if self.full else ()))


class Growth(NamedTuple):
    """How much of the objective space one searcher's first n evaluations dominate."""

    searcher: str
    evaluations: tuple[int, ...]
    percent: tuple[float, ...]  # of the box between the reference and the best value seen of each objective


class HypervolumeView(NamedTuple):
    """Hypervolume against the number of evaluations, and each searcher's at the same number."""

    growth: tuple[Growth, ...]
    reference: Mapping[str, float]
    ideal: Mapping[str, float]
    equal: int  # evaluations that every searcher but the uniform widths has made
    percent_at_equal: Mapping[str, float]


class LayerBar(NamedTuple):
    """The width one layer keeps; a layer in a skipped block keeps none."""

    path: str
    knob: str
    kept: int
    full: int
    skipped: bool


def pareto_view(run: RunView, x: str = "macs", y: str = "top1_percent") -> ParetoView:
    """The evaluated sub-nets, the front of these two values, the chosen sub-nets and the full net.

    Raises:
        InvalidInput: the run has no such values.
    """
    goals = {name: run.goal(name) for name in (x, y)}
    objectives = tuple(Objective(name, goal) for name, goal in goals.items())
    seen = [s for s in run.seen if x in s.values and y in s.values]
    allowed = [s for s in seen if s.key in run.front] or seen
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
        front=tuple(sorted(Point(s.values[x], s.values[y], s.key) for s in front_of(objectives, allowed)[1])),
        step="post" if goals[x] == "min" else "pre",
        chosen=tuple(
            Tuned(c.label, _point(c, {**c.costs, **c.before}, x, y), _point(c, {**c.costs, **c.after}, x, y))
            for c in run.chosen
        ),
        full=Point(run.full[x], run.full[y], "full") if x in run.full and y in run.full else None,
        x_limit=limits.get(x),
        y_limit=limits.get(y),
    )


def hypervolume_view(run: RunView, checkpoints: int = 40) -> HypervolumeView:
    """The growth of each searcher's dominated hypervolume, at up to `checkpoints` numbers of evaluations.

    The reference is the record's; without one it is the worst value seen of each objective.

    Raises:
        InvalidInput: fewer than two evaluations, or all are equal in one objective.
    """
    names = [objective.name for objective in run.objectives]
    if len(run.seen) < 2 or not names:
        raise InvalidInput(
            f"a hypervolume needs two evaluations or more, run {run.name!r} has {len(run.seen)}"
        )
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


def width_map(coverage: Mapping[str, Any], chosen: Chosen) -> tuple[LayerBar, ...]:
    """The width every elastic layer keeps in a chosen sub-net, in forward order."""
    gone = [b["path"] for b in coverage.get("blocks", ()) if chosen.config.get(b["knob"]) == 0]
    groups = {path: group for group in coverage.get("groups", ()) for path in group["writers"]}
    bars = []
    for path in forward_order([group["writers"] for group in coverage.get("groups", ())]):
        group = groups[path]
        skipped = any(path == block or path.startswith(f"{block}.") for block in gone)
        kept = 0 if skipped else chosen.config.get(group["knob"], group["size"])
        bars.append(LayerBar(path, group["knob"], kept, group["size"], skipped))
    return tuple(bars)


def forward_order(chains: Sequence[Sequence[str]]) -> list[str]:
    """Merges the layers of all groups into one order that keeps each chain's and that of the chains' heads.

    Where these leave a choice, the module path decides, numbers in it compared as numbers.
    """
    after: dict[str, list[str]] = defaultdict(list)
    waits: dict[str, int] = {path: 0 for chain in chains for path in chain}
    heads = list(dict.fromkeys(chain[0] for chain in chains if chain))
    for chain in (*chains, heads):
        for first, second in itertools.pairwise(chain):
            after[first].append(second)
            waits[second] += 1
    ready = [(_natural(path), path) for path, count in waits.items() if count == 0]
    heapq.heapify(ready)
    order: list[str] = []
    while ready:
        _, path = heapq.heappop(ready)
        order.append(path)
        for later in after[path]:
            waits[later] -= 1
            if waits[later] == 0:
                heapq.heappush(ready, (_natural(later), later))
    return order + sorted(
        set(waits) - set(order), key=_natural
    )  # the rest only if chains contradict each other


def _natural(path: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def _point(chosen: Chosen, values: Mapping[str, float], x: str, y: str) -> Point | None:
    at = (values.get(x, math.nan), values.get(y, math.nan))
    return None if any(map(math.isnan, at)) else Point(*at, chosen.key)
