"""Several knobs as one: what a space of fewer knobs costs, where each stands for several of another space."""

from __future__ import annotations

from collections.abc import Mapping

from ..costs import CostTable, Polynomial
from ..errors import InvalidInput
from ..space import SearchSpace

Meaning = Mapping[str, tuple[str | None, int]]


def tied_costs(costs: CostTable, space: SearchSpace, meaning: Meaning) -> CostTable:
    """The cost table of a space whose knobs stand for those of another one.

    Args:
        costs: of the other space.
        space: the new one; its values count in units of 1.
        meaning: for each old knob (new knob, factor): its value, in units of its divisor, is factor times the new
            knob's; (None, value): it always has that value.

    Raises:
        InvalidInput: an old knob has no meaning, or costs differ from resolution to resolution.
    """
    if missing := [name for name in costs.knobs if name not in meaning]:
        raise InvalidInput(
            f"every knob must stand for something in the new space, got none for {missing[0]!r}"
        )
    if costs.at_resolution:
        raise InvalidInput(
            "knobs over costs at several resolutions cannot be tied; convert with resolution=()"
        )
    depth = {knob.name for knob in space.knobs if knob.kind == "depth"}

    def told(terms: Polynomial) -> dict[tuple[str, ...], int]:
        found: dict[tuple[str, ...], int] = {}
        for monomial, coefficient in terms.items():
            names: list[str] = []
            for old in monomial:
                new, factor = meaning[old]
                coefficient *= factor
                if new is not None and not (new in depth and new in names):  # 0 and 1 are their own squares
                    names.append(new)
            key = tuple(sorted(names))
            found[key] = found.get(key, 0) + coefficient
        return found

    return CostTable(
        space.names,
        (1,) * len(space.knobs),
        told(costs.macs_terms),
        told(costs.params_terms),
        told(costs.weight_bytes_terms),
        tuple(told(step) for step in costs.peak_activation_bytes_terms),
    )
