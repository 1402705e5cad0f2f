"""One integer decision of a sub-net."""

from __future__ import annotations

import itertools
import numbers
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from .errors import InvalidInput, nearest_names

KnobKind = Literal["width", "depth", "branch", "resolution", "choice"]
RESOLUTION_KNOB = "resolution"  # the name of the knob that says the height of a sub-net's images, in pixels


def whole_number(value: object, what: str) -> int:
    """Returns `value` as a Python int; `InvalidInput` for booleans, fractions and more than 64 bits."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise InvalidInput(f"{what} must be a whole number, got {value!r}")
    if not -(2**63) <= number < 2**63:
        raise InvalidInput(f"{what} must fit in 64 bits, got {number}")
    return number


def number_above_0(value: object, what: str) -> float:
    """Returns `value`, of Python or numpy, as a float; `InvalidInput` for booleans and what is not above 0."""
    number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else 0.0
    if not number > 0:
        raise InvalidInput(f"{what} must be a number above 0, got {value!r}")
    return number


@dataclass(frozen=True, slots=True)
class Knob:
    """One integer decision of a sub-net, such as the channels kept in a coupled group.

    Attributes:
        name: for widths the dotted path of the group's first producer, for depth the path of the block.
        choices: ascending, the last one is the whole supernet; `(0, 1)` for depth. Only the choices of kind
            "choice" have no order: distinct, `smallest` is the first and `largest` the last.
        kind: what the integer means.

    Raises:
        InvalidInput: for an empty name, an unknown kind or choices that break the rule of their kind.
    """

    name: str
    choices: tuple[int, ...]
    kind: KnobKind = "width"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InvalidInput(f"the name of a knob must be a non-empty text, got {self.name!r}")
        kinds = get_args(KnobKind)
        if self.kind not in kinds:
            hint = nearest_names(self.kind, kinds)
            raise InvalidInput(
                f"the kind of knob {self.name!r} must be one of {', '.join(kinds)}, got {self.kind!r}{hint}"
            )
        object.__setattr__(self, "choices", self._checked_choices())

    def _checked_choices(self) -> tuple[int, ...]:
        what = f"choices of knob {self.name!r}"
        if isinstance(self.choices, str) or not isinstance(self.choices, Iterable):
            raise InvalidInput(f"{what} must be a tuple of whole numbers, got {self.choices!r}")
        choices = tuple(whole_number(choice, what) for choice in self.choices)
        if self.kind == "depth" and choices != (0, 1):
            raise InvalidInput(f"{what} must be (0, 1): a block is skipped or kept, got {choices}")
        if self.kind == "choice":
            if not choices or len(set(choices)) < len(choices):
                raise InvalidInput(f"{what} must be distinct and not empty, got {choices}")
        elif not choices or any(a >= b for a, b in itertools.pairwise(choices)):
            raise InvalidInput(f"{what} must be ascending and not empty, got {choices}")
        elif choices[0] < (least := int(self.kind in ("width", "resolution"))):
            raise InvalidInput(f"{what} of kind {self.kind!r} must be at least {least}, got {choices}")
        return choices

    @property
    def smallest(self) -> int:
        """The first choice."""
        return self.choices[0]

    @property
    def largest(self) -> int:
        """The last choice: that of the whole supernet."""
        return self.choices[-1]
