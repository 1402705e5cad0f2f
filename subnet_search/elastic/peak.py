"""How many bytes live tensors need at every step, where skipped blocks hand on the memory that they were given.

Memory belongs to the tensor that it was made for. It is alive at a step if something that still runs touches it, which
may depend on which blocks are kept: what only one block reads is gone early without that block. Of tensors that are one
memory while blocks between them are skipped, the first in order is counted.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import fx

from subnet_search.elastic.terms import ALWAYS, Cases, Condition, Terms, add, fewest, scaled, while_kept

MOST_CASES = 12  # in which one tensor is alive; where there are more, it counts in all
MOST_ORDERED = 4  # tensors that are alive in some cases only and may be one memory: they have up to 24 orders
MOST_MONOMIALS = 256  # of the bytes of one memory; where there were more, the largest that it can be is said
MOST_CHOICES = 512  # of cases at one step; where there were more, what is alive in most of them counts in all


class HandedMemory(NamedTuple):
    """A skipped block hands on its input: what it makes is then the memory it was given, no second tensor."""

    made: fx.Node
    given: fx.Node
    block: str


class Touch(NamedTuple):
    """An operation reads or makes memory, if the blocks around it are kept."""

    step: float
    blocks: Condition


class Live:
    """The memory of a graph, step by step.

    Args:
        sizes: bytes of the memory that belongs to each tensor; of what lives elsewhere, such as in weights, none.
        touches: of the memory that belongs to each tensor.
        blocks: the first and last step of every skippable block.
        links: what skippable blocks hand on, by the tensors that memory belongs to.
    """

    def __init__(
        self,
        sizes: Mapping[fx.Node, Terms],
        touches: Mapping[fx.Node, Sequence[Touch]],
        blocks: Mapping[str, tuple[int, int]],
        links: Sequence[HandedMemory],
    ) -> None:
        self._sizes = sizes
        links = [link for link in links if link.made is not link.given]
        self._links = sorted(links, key=lambda link: blocks[link.block])
        self._chains: dict[Condition, _Chains] = {}
        self._touches = defaultdict(list, {owner: list(found) for owner, found in touches.items()})
        self._later: dict[fx.Node, tuple[list[float], list[Cases]]] = {}
        for link in reversed(self._links):
            first, last = blocks[link.block]
            # whoever reads on, after the block, what it hands on keeps alive, up to the block, what it was given
            self._touches[link.given] += [Touch(first - 0.5, c) for c in self.cases(link.made, last + 0.25)]

    def cases(self, owner: fx.Node, step: float) -> Cases:
        """In which cases a tensor's memory is touched at this step or later."""
        if owner not in self._later:
            self._later[owner] = _later(self._touches[owner])
        steps, cases = self._later[owner]
        return cases[bisect_left(steps, step)]

    def bytes_at(self, step: int, alive: Sequence[fx.Node], kept: Condition) -> list[Terms]:
        """The bytes of all memory at a step; the largest of these polynomials holds.

        Args:
            step: number of the operation.
            alive: the tensors made so far that memory belongs to and that may be alive, in order.
            kept: the blocks around the operation.
        """
        if kept not in self._chains:
            self._chains[kept] = _Chains(
                [link for link in self._links if link.block not in kept], self._sizes
            )
        chains = self._chains[kept]
        cases = {owner: fewest(c - kept for c in self.cases(owner, step)) for owner in alive}
        cases = {owner: found if len(found) <= MOST_CASES else ALWAYS for owner, found in cases.items()}
        found: list[Terms] = []
        for order in _orders(cases, chains):
            by_cases: dict[Cases, list[Terms]] = defaultdict(list)
            for place, owner in enumerate(order):
                separate = chains.separate(owner, order[:place])
                both = fewest(one | other for one in cases[owner] for other in separate)
                by_cases[both].append(chains.bytes(owner, order[:place]))
            sums = {both: add(terms) for both, terms in by_cases.items()}
            while math.prod(map(len, sums)) > MOST_CHOICES:
                sums[ALWAYS] = add([sums.pop(max(sums, key=len)), sums.pop(ALWAYS, {})])
            for chosen in itertools.product(*sums):
                parts = (while_kept(terms, one) for terms, one in zip(sums.values(), chosen, strict=True))
                found.append(while_kept(add(parts), kept))
        return found


def _later(touches: Sequence[Touch]) -> tuple[list[float], list[Cases]]:
    """The steps of all touches, ascending, and in which cases there are any from each of them on; at last none."""
    ordered = sorted(touches, key=lambda touch: touch.step)
    cases: list[Cases] = [()]
    for touch in reversed(ordered):
        cases.append(cases[-1] if cases[-1] == ALWAYS else fewest([*cases[-1], touch.blocks]))
    return [touch.step for touch in ordered], cases[::-1]


class _Chains:
    """Tensors that are one memory while the blocks between them are skipped."""

    def __init__(self, links: Sequence[HandedMemory], sizes: Mapping[fx.Node, Terms]) -> None:
        self._links, self._sizes = links, sizes
        self._near: dict[fx.Node, list[HandedMemory]] = defaultdict(list)
        for link in links:
            self._near[link.made].append(link)
            self._near[link.given].append(link)
        self._ways: dict[tuple[fx.Node, fx.Node], list[Condition]] = {}

    def ways(self, one: fx.Node, other: fx.Node) -> list[Condition]:
        """The blocks along every way between two tensors."""
        if one not in self._near or other not in self._near:
            return []
        if (one, other) not in self._ways:
            self._ways[one, other] = list(fewest(self._along(one, other, ())))
        return self._ways[one, other]

    def _along(self, start: fx.Node, goal: fx.Node, gone: tuple[HandedMemory, ...]) -> Iterator[Condition]:
        if start is goal:
            yield frozenset(link.block for link in gone)
            return
        for link in self._near[start]:
            if link not in gone:
                there = link.given if start is link.made else link.made
                yield from self._along(there, goal, (*gone, link))

    def separate(self, owner: fx.Node, others: Sequence[fx.Node]) -> Cases:
        """When a tensor has memory of its own beside the others: unless all blocks on a way to one are skipped."""
        ways = fewest(way for other in others for way in self.ways(owner, other))
        return fewest(frozenset(chosen) for chosen in itertools.product(*map(sorted, ways)))

    def bytes(self, owner: fx.Node, counted: Sequence[fx.Node]) -> Terms:
        """Bytes of the memory that a tensor is in: of its own, or of what skipped blocks handed on to it.

        Args:
            owner: a tensor.
            counted: those whose memory is counted already; what is one with them is none of its own.
        """
        found, sizes = self._handed_to(owner, counted), self._sizes
        if all(sizes[one] == sizes[owner] for one in found):
            return sizes[owner]
        terms: dict[fx.Node, Terms] = {}
        for one in reversed(found):
            terms[one] = sizes[one]
            for link in reversed(self._near[one]):  # inner blocks first
                given = terms.get(link.given)
                if link.made is one and given is not None and given != terms[one]:
                    skipped = add([given, scaled(while_kept(given, [link.block]), -1)])
                    terms[one] = add([while_kept(terms[one], [link.block]), skipped])
            if len(terms[one]) > MOST_MONOMIALS:
                monomials = {m for x in found for m in sizes[x]}
                return {m: max(sizes[x].get(m, 0) for x in found) for m in monomials}
        return terms[owner]

    def _handed_to(self, owner: fx.Node, counted: Sequence[fx.Node]) -> list[fx.Node]:
        """The tensor and all whose memory it may be in, each after those that it may be handed on to."""
        found = {owner: None}
        for link in reversed(self._links):
            if link.made in found and link.given not in counted:
                found.pop(link.given, None)
                found[link.given] = None
        return list(found)


def _orders(cases: Mapping[fx.Node, Cases], chains: _Chains) -> Iterator[tuple[fx.Node, ...]]:
    """In which orders memory is counted: what is always alive first.

    Of two tensors that are one memory and are alive in some cases only, each is counted first in one of the orders:
    only one of these says as much as is true where just one of the two is alive, and none says more.
    """
    always = [owner for owner, found in cases.items() if found == ALWAYS]
    sometimes = [owner for owner, found in cases.items() if found and found != ALWAYS]
    linked = [o for o in sometimes if any(chains.ways(o, other) for other in sometimes if other is not o)]
    rest = [owner for owner in sometimes if owner not in linked]
    orders = itertools.permutations(linked) if len(linked) <= MOST_ORDERED else [linked, linked[::-1]]
    for order in orders:
        yield (*always, *rest, *order)
