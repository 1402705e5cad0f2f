"""What fine-tuning changed in the order of the chosen sub-nets."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .dominance import non_dominated
from .objective import Objective

Values = Mapping[str, float]
ENOUGH = 4  # sub-nets; the orders of fewer agree by chance too often to say anything
ENUMERABLE = 7  # sub-nets; up to here every order is tried for the p-value


@dataclass(frozen=True, slots=True)
class Reranked:
    """A chosen sub-net among all chosen ones; place 1 is the best, and equal ones share a place."""

    key: str
    before: float
    after: float
    place_before: int
    place: int
    beaten_by: tuple[str, ...]  # keys of those that are no worse in any objective and better in one


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well two orders agree: Kendall's tau-b of `count` pairs, from -1 (reversed) to 1 (equal).

    None where it says nothing: fewer than `ENOUGH` sub-nets, or all of them equal on one side.
    """

    count: int
    tau: float | None = None
    p_value: float | None = (
        None  # two-sided: how often orders without any connection agree or disagree so much
    )


def rerank(
    objectives: Sequence[Objective],
    before: Mapping[str, Values],
    after: Mapping[str, Values],
    name: str = "top1_percent",
) -> list[Reranked]:
    """The tuned sub-nets, the best in `name` after tuning first; of equal ones the cheaper.

    Args:
        objectives: decide who beats whom after tuning; those that a sub-net has no value of are left out.
        before: values by key and name, untuned.
        after: the same after tuning, everything in it that tuning leaves as it is; only its keys are ranked.
    """
    known = {objective.name: objective for objective in objectives}
    ranked = known.pop(name, Objective(name, "max"))
    compared = [ranked, *(o for o in known.values() if all(o.name in values for values in after.values()))]
    keys = sorted(after)
    losses = np.array([[o.loss(after[key][o.name]) for o in compared] for key in keys])
    start = np.array([ranked.loss(before[key][name]) for key in keys])
    found = [
        Reranked(
            key,
            before[key][name],
            after[key][name],
            1 + int((start < start[i]).sum()),
            1 + int((losses[:, 0] < losses[i, 0]).sum()),
            tuple(other for j, other in enumerate(keys) if not non_dominated(losses[[i, j]])[0]),
        )
        for i, key in enumerate(keys)
    ]
    order = sorted(range(len(keys)), key=lambda i: (*losses[i], keys[i]))
    return [found[i] for i in order]


def agreement(before: Sequence[float], after: Sequence[float]) -> Agreement:
    """Kendall's tau-b between two rows of numbers about the same sub-nets, ties counted.

    The p-value counts every order of up to `ENUMERABLE` sub-nets; of more it is SciPy's: exact without ties,
    else the normal approximation.

    Source:
        Kendall, "The treatment of ties in ranking problems", 1945, doi:10.1093/biomet/33.3.239.
    """
    count = len(before)
    if count < ENOUGH or len(set(before)) == 1 or len(set(after)) == 1:
        return Agreement(count)
    from scipy.stats import kendalltau  # takes half a second to import

    tau, p_value = kendalltau(before, after, variant="b")
    if count <= ENUMERABLE:
        p_value = _share_of_orders(np.asarray(before, dtype=float), np.asarray(after, dtype=float))
    return Agreement(count, float(tau), float(p_value))


def in_words(order: Sequence[Reranked], name: str = "accuracy", unit: str = "%") -> list[str]:
    """The re-ranked list as lines for people; fewer than two need none."""
    if len(order) < 2:
        return []
    lines = [f"by {name} after fine-tuning (search-validation):"]
    for one in order:
        moved = "" if one.place == one.place_before else f", was {one.place_before}."
        beaten = f"; no better than {' or '.join(one.beaten_by)} in anything" if one.beaten_by else ""
        lines.append(f"{one.place}. {one.key}: {one.after:.2f} {unit}{moved}{beaten}")
    return lines


def _share_of_orders(before: np.ndarray, after: np.ndarray) -> float:
    """The share of all orders of `after` whose |tau| is no smaller; ties keep the denominator the same."""
    signs = np.sign(before[:, None] - before[None])  # [count, count]
    orders = np.array(list(itertools.permutations(range(len(after)))))  # [count!, count]
    shuffled = after[orders]
    sums = np.abs((signs * np.sign(shuffled[:, :, None] - shuffled[:, None])).sum(axis=(1, 2)))
    return float((sums >= sums[0]).mean())  # the first order is the one that was found
