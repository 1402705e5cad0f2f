"""Arithmetic with polynomials in the knobs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

Terms = dict[tuple[str, ...], int]  # monomial (sorted knob names) -> coefficient
Condition = frozenset[str]  # blocks that must all be kept
Cases = tuple[Condition, ...]  # something is so if one of them holds; none: never

ALWAYS: Cases = (frozenset(),)
MOST_CASES = 8  # so many make up to 255 monomials


def add(polynomials: Iterable[Terms]) -> Terms:
    """The sum of polynomials, without zero terms."""
    total: Terms = {}
    for terms in polynomials:
        for monomial, coefficient in terms.items():
            total[monomial] = total.get(monomial, 0) + coefficient
    return {monomial: coefficient for monomial, coefficient in total.items() if coefficient}


def scaled(terms: Terms, factor: int) -> Terms:
    """The polynomial times a whole number."""
    return {monomial: coefficient * factor for monomial, coefficient in terms.items()}


def times(terms: Terms, other: Terms | tuple[str, ...]) -> Terms:
    """The product of two polynomials; a tuple of knobs is a monomial."""
    factor = {other: 1} if isinstance(other, tuple) else other
    return add(
        {tuple(sorted((*left, *right))): a * b} for left, a in terms.items() for right, b in factor.items()
    )


def while_kept(terms: Terms, blocks: Iterable[str]) -> Terms:
    """The polynomial where all these blocks are kept, else zero: each of them is 0 or 1, so once is enough."""
    found: Terms = {}
    for monomial, coefficient in terms.items():
        gated = tuple(sorted((*monomial, *(block for block in set(blocks) if block not in monomial))))
        found[gated] = found.get(gated, 0) + coefficient
    return {monomial: coefficient for monomial, coefficient in found.items() if coefficient}


def fewest(conditions: Iterable[Condition]) -> Cases:
    """The same cases without those that others contain."""
    kept: list[Condition] = []
    for condition in sorted(dict.fromkeys(conditions), key=lambda c: (len(c), sorted(c))):
        if not any(other <= condition for other in kept):
            kept.append(condition)
    return tuple(kept)


def in_some_case(terms: Terms, cases: Cases) -> Terms:
    """The polynomial where one of the cases holds, else zero; where there are too many cases, always."""
    cases = fewest(cases)
    if len(cases) > MOST_CASES:
        return terms
    rest = terms  # where none of the cases so far holds
    for condition in cases:
        rest = add([rest, scaled(while_kept(rest, condition), -1)])
    return add([terms, scaled(rest, -1)])


def undominated(steps: Sequence[Terms]) -> list[Terms]:
    """Leaves out polynomials that are never more than another one, coefficient by coefficient."""
    kept: list[Terms] = []
    having: dict[tuple[str, ...], list[Terms]] = defaultdict(list)  # those kept, by their monomials
    for step in sorted(steps, key=lambda t: -sum(t.values())):
        rarest = min((having[m] for m, c in step.items() if c > 0), key=len, default=kept)
        if not any(_never_less(other, step) for other in rarest):
            kept.append(step)
            for monomial in step:
                having[monomial].append(step)
    return kept


def _never_less(other: Terms, step: Terms) -> bool:
    enough = all(other.get(m, 0) >= c for m, c in step.items())
    return enough and all(c >= 0 for m, c in other.items() if m not in step)
