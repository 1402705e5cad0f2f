"""Which members of a front are worth fine-tuning, and how they stand afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from search_spaces import CostTable, SearchSpace, SubnetConfig, SubnetSearchError
from search_spaces.costs import COST_NAMES
from subnet_search.record import Evaluation, Objective, ParetoFront, rerank
from subnet_search.record.reranking import Reranked

SMALLEST_COST = 1e-12  # has a logarithm


def choose_spread(front: ParetoFront, count: int) -> list[Evaluation]:
    """Up to `count` members that spread over the front's range of cost.

    The range, on a logarithmic scale, is cut into `count` equal parts, and the best member of each part is
    taken; where parts are empty, the members farthest in cost from those taken make up the number. Cost is the
    first objective to be low, "best" the first one to be high.
    """
    members = list(front)
    cost = next((i for i, o in enumerate(front.objectives) if o.goal == "min"), None)
    if cost is None or not members:
        return members[:count]
    quality = next((i for i, o in enumerate(front.objectives) if o.goal == "max"), cost)
    worth = [front.objectives[quality].loss(member.values[quality]) for member in members]
    places = np.log([max(member.values[cost], SMALLEST_COST) for member in members])  # [num_members]
    edges = np.linspace(places.min(), places.max(), count + 1)[1:-1]
    parts = np.searchsorted(edges, places, side="left")
    chosen: list[int] = []
    for part in range(count):
        inside = np.flatnonzero(parts == part).tolist()
        chosen += sorted(inside, key=lambda i: (worth[i], places[i]))[:1]
    while len(chosen) < min(count, len(members)):
        left = [i for i in range(len(members)) if i not in chosen]
        chosen.append(max(left, key=lambda i: np.abs(places[chosen] - places[i]).min()))
    return [members[i] for i in chosen]


def choose_under(
    front: ParetoFront, limits: Mapping[str, float], space: SearchSpace, costs: CostTable
) -> Evaluation:
    """The member that meets all limits and is best in the first objective that has none.

    Args:
        front: its order of objectives decides what "best" is.
        limits: upper bounds on costs and "min" objectives, lower bounds on "max" objectives.
        space: knows the configs' encoding.
        costs: gives costs that are no objective.

    Raises:
        SubnetSearchError: no member meets the limits.
    """
    members = list(front)
    by_name = {name: Objective(name, "min") for name in COST_NAMES} | {o.name: o for o in front.objectives}
    exact = costs.evaluate(space.encode([member.config for member in members]), COST_NAMES)
    rows = [
        {**{name: float(exact[name][i]) for name in exact}, **named_values(front.objectives, member)}
        for i, member in enumerate(members)
    ]

    def fits(row: Mapping[str, float]) -> bool:
        return all(by_name[name].meets(row[name], bound) for name, bound in limits.items())

    free = [o for o in front.objectives if o.name not in limits] or list(front.objectives)
    fitting = [i for i, row in enumerate(rows) if fits(row)]
    if not fitting:
        nearest = {n: min((row[n] for row in rows), key=by_name[n].loss, default=None) for n in limits}
        raise SubnetSearchError(
            f"no sub-net of the front meets {dict(limits)}; the nearest values there are {nearest}. "
            "Search longer in a new run, or loosen the limit"
        )
    return members[min(fitting, key=lambda i: [o.loss(rows[i][o.name]) for o in free])]


def order_after_tuning(
    front: ParetoFront,
    metrics: Mapping[SubnetConfig, Mapping[str, Any]],
    space: SearchSpace,
    costs: CostTable,
) -> list[Reranked]:
    """The chosen sub-nets by their accuracy after tuning; the search's order is that of inherited weights.

    Args:
        front: its objectives decide who beats whom; it has the values that tuning does not change.
        metrics: the content of each chosen sub-net's metrics.json, with `before` and `after`.
        space: knows the configs' encoding.
        costs: gives costs that are no objective.
    """
    searched = {member.config: named_values(front.objectives, member) for member in front}
    exact = costs.evaluate(space.encode(list(metrics)), COST_NAMES)
    after = {
        config.key: {
            **searched.get(config, {}),
            **{name: float(exact[name][i]) for name in exact},
            **found["after"],
        }
        for i, (config, found) in enumerate(metrics.items())
    }
    return rerank(front.objectives, {c.key: found["before"] for c, found in metrics.items()}, after)


def named_values(objectives: Sequence[Objective], member: Evaluation) -> dict[str, float]:
    """The values of an evaluation by objective name."""
    return {objective.name: value for objective, value in zip(objectives, member.values, strict=True)}
