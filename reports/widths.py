"""The width of every layer of a chosen sub-net, in forward order."""

from __future__ import annotations

import heapq
import itertools
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from reports.view import Chosen


class LayerBar(NamedTuple):
    """The width one layer keeps; a layer in a skipped block keeps none."""

    path: str
    knob: str
    kept: int
    full: int
    skipped: bool


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
