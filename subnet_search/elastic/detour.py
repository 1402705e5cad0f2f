"""What a skipped block of the model's own classes answers, where it is not simply its one argument."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

_PACKED: dict[str, Callable[..., Any]] = {"tuple": tuple, "list": list}


@dataclass(frozen=True)
class Detour:
    """Which arguments of its call a skipped block answers with.

    Attributes:
        places: position or name of each.
        packed: "tuple" or "list", where the block returns its answers in one.
    """

    places: tuple[int | str, ...]
    packed: str | None = None

    def answer(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Those of these arguments."""
        found = [args[place] if isinstance(place, int) else kwargs[place] for place in self.places]
        return found[0] if self.packed is None else _PACKED[self.packed](found)

    def module(self) -> nn.Module:
        """A module of torch's that answers so, to stand where the block stood."""
        graph = fx.Graph()
        given = (graph.placeholder("*args"), graph.placeholder("**kwargs"))
        found = [
            graph.call_function(operator.getitem, (given[isinstance(place, str)], place))
            for place in self.places
        ]
        graph.output(found[0] if self.packed is None else _PACKED[self.packed](found))
        return fx.GraphModule(nn.Module(), graph)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"places": list(self.places), "packed": self.packed}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Detour:
        """What `to_json` made."""
        return cls(tuple(data["places"]), data["packed"])
