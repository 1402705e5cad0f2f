"""A path of nested sub-nets, from the whole net down: its elements, how they are stored, which of them stay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from search_spaces import InvalidInput, SubnetConfig


@dataclass(frozen=True, slots=True)
class Score:
    """How well a sub-net does on search-validation.

    Raises:
        InvalidInput: for a loss that is not finite, or an accuracy outside 0 to 100.
    """

    loss: float
    top1_percent: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.loss) or not 0 <= self.top1_percent <= 100:
            raise InvalidInput(
                f"a score needs a finite loss and 0 to 100 percent, got {self.loss!r} and {self.top1_percent!r}; "
                "give a sub-net whose loss overflows a large number"
            )


class Drop(NamedTuple):
    """A step that a path may take: one knob one rung down."""

    knob: str
    config: SubnetConfig
    saved_macs: int


@dataclass(frozen=True)
class PathElement:
    """One sub-net of a path, and all that a search cut off after it needs to go on.

    Attributes:
        config: canonical.
        score: its final look; that after tuning, if it was tuned.
        dropped: the knob that went one rung down from the element before; "" for the first, the whole net.
        images: image forwards spent on the path up to here.
        tuned: whether the weights were tuned when it was found.
        first_loss: of its first look; None where there was none with the present weights.
        increases: how much the drops looked at in this step, one for each knob, added to the loss.
        latencies_ms: of the sub-nets timed in this step, by the knob dropped, its own among them; empty unless the
            criterion is "loss_per_ms".
    """

    config: SubnetConfig
    score: Score
    dropped: str
    images: int
    tuned: bool = False
    first_loss: float | None = None
    increases: Mapping[str, float] = field(default_factory=dict, hash=False)
    latencies_ms: Mapping[str, float] = field(default_factory=dict, hash=False)


def reselect(path: Sequence[PathElement]) -> list[PathElement]:
    """Leaves out the elements that a smaller one equals or beats in accuracy; both ends of the path stay.

    An element is compared with those scored with the same weights, that is up to the next one that was tuned: what
    tuning gave is no merit of the smaller net. A path scored anew with one set of weights has no tuned elements.
    """
    kept: list[PathElement] = []
    best = -math.inf
    for place in reversed(range(len(path))):
        element = path[place]
        if element.score.top1_percent > best or place in (0, len(path) - 1):
            kept.append(element)
        best = -math.inf if element.tuned else max(best, element.score.top1_percent)
    return kept[::-1]


def path_to_json(path: Sequence[PathElement]) -> list[dict[str, Any]]:
    """One dictionary for each element, ready for JSON, from which `path_from_json` makes the same path."""
    return [
        {
            "config": dict(e.config),
            "loss": e.score.loss,
            "top1_percent": e.score.top1_percent,
            "dropped": e.dropped,
            "images": e.images,
            "tuned": e.tuned,
            "first_loss": e.first_loss,
            "increases": dict(e.increases),
            "latencies_ms": dict(e.latencies_ms),
        }
        for e in path
    ]


def path_from_json(data: Any) -> list[PathElement]:
    """Reads what `path_to_json` wrote.

    Raises:
        InvalidInput: for anything else.
    """
    try:
        return [
            PathElement(
                SubnetConfig(item["config"]),
                Score(float(item["loss"]), float(item["top1_percent"])),
                str(item["dropped"]),
                int(item["images"]),
                bool(item["tuned"]),
                None if item["first_loss"] is None else float(item["first_loss"]),
                {str(knob): float(increase) for knob, increase in item["increases"].items()},
                {str(knob): float(ms) for knob, ms in item.get("latencies_ms", {}).items()},
            )
            for item in data
        ]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise InvalidInput(
            f"a path must be a list of what path_to_json wrote, got {data!r:.100} "
            f"({type(error).__name__}: {error}); delete it to walk from the beginning"
        ) from error
