from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from search_spaces import RESOLUTION_KNOB, CostTable, Knob, SearchSpace


@pytest.fixture(scope="session")
def random_space() -> Callable[[int], SearchSpace]:
    """Small spaces with nested blocks and knobs that act in several places, half of them with a resolution."""

    def make(seed: int) -> SearchSpace:
        rng = np.random.default_rng(seed)
        blocks = [f"block{i}" for i in range(rng.integers(1, 5))]
        knobs = [Knob(block, (0, 1), "depth") for block in blocks]
        for i, kind in enumerate(rng.choice(["width", "width", "branch", "choice"], size=3)):
            choices = sorted(rng.choice(range(1, 20), size=rng.integers(1, 4), replace=False))
            knobs.append(Knob(f"knob{i}", tuple(choices), kind))
        conditions = {}
        for i, knob in enumerate(knobs):
            outer = blocks[:i]  # so that no block gets inside itself
            if outer and rng.random() < 0.8:
                conditions[knob.name] = tuple(
                    tuple(rng.choice(outer, size=rng.integers(1, len(outer) + 1), replace=False).tolist())
                    for _ in range(rng.integers(1, 4))
                )
        if rng.random() < 0.5:
            heights = sorted(rng.choice(range(1, 20), size=rng.integers(2, 4), replace=False))
            knobs.append(Knob(RESOLUTION_KNOB, tuple(heights), "resolution"))
        order = rng.permutation(len(knobs))
        return SearchSpace(tuple(knobs[i] for i in order), conditions)

    return make


@pytest.fixture(scope="session")
def random_costs() -> Callable[[SearchSpace, int], CostTable]:
    """Costs that grow with every knob and are zero for inactive ones, from a seed."""

    def make(space: SearchSpace, seed: int) -> CostTable:
        rng = np.random.default_rng(seed)

        def polynomial() -> dict[tuple[str, ...], int]:
            terms = {(): int(rng.integers(1, 9))}
            for knob in (k for k in space.knobs if k.kind != "resolution"):
                places = space.inactive_when.get(knob.name, ((),))
                around = places[rng.integers(len(places))]
                monomial = tuple(sorted((knob.name, *around, *(around[:1] and [knob.name]))))
                terms[monomial] = int(rng.integers(1, 99))
            return terms

        divisors = tuple(1 if knob.kind == "depth" else int(rng.integers(1, 3)) for knob in space.knobs)
        macs, params, weight_bytes, first, second = (polynomial() for _ in range(5))
        heights = next((k.choices for k in space.knobs if k.kind == "resolution"), ())

        def at(height: int, whole: int, lower: dict[int, CostTable]) -> CostTable:
            share = [{m: c * height // whole for m, c in terms.items()} for terms in (macs, first, second)]
            return CostTable(space.names, divisors, share[0], params, weight_bytes, tuple(share[1:]), lower)

        return at(1, 1, {height: at(height, heights[-1], {}) for height in heights[:-1]})

    return make
