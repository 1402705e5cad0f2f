"""Operating points of one trained net: the price of cost that brings the mean to a target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from search_spaces import InvalidInput
from subnet_search.dynamic.building import Slimming
from subnet_search.dynamic.gate_training import Gathered
from subnet_search.dynamic.slimming import SlimmingNet

HALVINGS = 60  # of the range in which a price is looked for


@dataclass(frozen=True)
class Point:
    """One way to run a dynamic net.

    Attributes:
        target: the mean share of the largest net's multiply-adds that was asked for; None where none was.
        price: of cost, in the gates' logits.
        mean_macs: over the images of a split, gates included.
        spread_macs: their standard deviation over these images.
        histogram: share of the images on each route.
        top1_percent: on that split.
    """

    target: float | None
    price: float
    mean_macs: float
    spread_macs: float
    histogram: tuple[float, ...]
    top1_percent: float

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "target": self.target,
            "price": self.price,
            "mean_macs": self.mean_macs,
            "spread_macs": self.spread_macs,
            "histogram": list(self.histogram),
            "top1_percent": self.top1_percent,
        }


def ways_at(net: SlimmingNet, seen: Gathered, price: float) -> Tensor:
    """The leaf that each image comes to at a price, `[num_images]`."""
    count = len(seen.labels)
    found = torch.zeros(count, dtype=torch.int64)
    chosen = {
        prefix: (logits - price * net.gate(prefix).cost.cpu()).argmax(dim=1)
        for prefix, logits in seen.gates.items()
    }
    for number, leaf in enumerate(net.leaves):
        here = torch.ones(count, dtype=torch.bool)
        for depth, choice in enumerate(leaf):
            here &= chosen[leaf[:depth]] == choice
        found[here] = number
    return found


def set_price(net: SlimmingNet, price: float) -> None:
    """Makes all gates of a net decide at this price."""
    for prefix in net.prefixes():
        net.gate(prefix).price.fill_(price)


def reachable(slimming: Slimming) -> tuple[float, float]:
    """The lowest and the highest mean cost, as shares of the largest net's: all images along one route."""
    shares = slimming.shares()
    return float(shares.min()), float(shares.max())


def check_targets(slimming: Slimming, targets: Sequence[float]) -> None:
    """Raises `InvalidInput` for a target that no routing reaches, with the range that can be reached."""
    low, high = reachable(slimming)
    for target in targets:
        if not low <= target <= high:
            whole = slimming.largest_macs
            raise InvalidInput(
                f"a mean cost of {target:g} of the largest net's multiply-adds cannot be reached: the routes cost "
                f"{low:.4f} to {high:.4f} of it ({low * whole:,.0f} to {high * whole:,.0f}), gates included. Choose a "
                "target in between, or routes that go lower (least_share, head_share, an earlier place)"
            )


def default_targets(slimming: Slimming, count: int) -> tuple[float, ...]:
    """Targets spread evenly inside what is reachable."""
    low, high = reachable(slimming)
    inside: list[float] = np.linspace(low, high, count + 2)[1:-1].tolist()
    return tuple(inside)


def price_for(slimming: Slimming, seen: Gathered, target: float) -> float:
    """The price at which the mean cost over some images comes nearest to a target.

    The higher the price, the cheaper the routes, with one gate exactly so, as every image's choice is.

    Args:
        slimming: the net with trained gates.
        seen: what it gives on the images; labels are not read.
        target: mean share of the largest net's multiply-adds.

    Raises:
        InvalidInput: the target is out of reach.
    """
    check_targets(slimming, [target])
    shares = slimming.shares()

    def mean_at(price: float) -> float:
        return float(shares[ways_at(slimming.net, seen, price)].mean())

    most = 1.0
    for prefix, logits in seen.gates.items():
        gaps = slimming.net.gate(prefix).cost.sort().values.diff().clamp_min(1e-6)
        most = max(most, float((logits.max() - logits.min()) / gaps.min()) + 1.0)
    low, high = _jump(
        lambda price: mean_at(price) > target, -most, most
    )  # mean cost falls from the one to the other
    best = min((low, high), key=lambda price: abs(mean_at(price) - target))
    found, far = mean_at(best), (-most if best == low else most)
    _, end = _jump(lambda price: (mean_at(price) == found) != (best == low), *sorted((best, far)))
    between = (best + end) / 2  # far from where an image turns, as rounding differs from batch to batch
    return between if mean_at(between) == found else best


def _jump(before: Callable[[float], bool], low: float, high: float) -> tuple[float, float]:
    """Two numbers close together, from `low` and `high`, between which `before` turns from true to false."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if before(middle) else (low, middle)
    return low, high


def point_at(slimming: Slimming, seen: Gathered, price: float, target: float | None = None) -> Point:
    """What a net does on some images at a price."""
    ways = ways_at(slimming.net, seen, price)
    macs = torch.tensor(slimming.net.macs, dtype=torch.float64)[ways]
    right = seen.right.gather(1, ways[:, None])[:, 0]
    return Point(
        target,
        price,
        float(macs.mean()),
        float(macs.std(unbiased=False)),
        tuple((torch.bincount(ways, minlength=len(slimming.net.leaves)) / len(ways)).tolist()),
        100.0 * float(right.double().mean()),
    )
