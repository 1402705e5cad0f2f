"""What a sub-net costs, as arithmetic: closed forms in the knobs, evaluated for arrays of configs."""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .activity import Ints
from .errors import InvalidInput, nearest_names
from .knob import RESOLUTION_KNOB, whole_number

# monomial (sorted knob names, repeats allowed, () for the constant) -> coefficient
Polynomial = Mapping[tuple[str, ...], int]

COST_NAMES = ("macs", "params", "weight_bytes", "peak_activation_bytes")
CHUNK_ROWS = 2048  # so many configs at a time: their products fit in a processor's cache
EXACT_LIMIT = 2**53  # float64 holds every integer below

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CostTable:
    """Multiply-adds, parameters and bytes of every sub-net of a space.

    A polynomial's variables are knobs, in units of `value // divisor`: depth knobs count as 0 or 1.
    Peak activation is the largest of the execution steps' polynomials.

    Attributes:
        knobs: names of the space's knobs, in column order.
        divisors: the unit of each knob, at least 1.
        macs_terms: multiply-adds at batch 1 of convolutions, linear layers and matrix products.
        params_terms: numbers in parameters.
        weight_bytes_terms: bytes of the stored weights.
        peak_activation_bytes_terms: bytes of the live tensors, one polynomial for each execution step.
        at_resolution: what holds instead where the knob "resolution" is at one of its lower choices, by that choice:
            padding, floors and windows make no polynomial of the size of images.

    Raises:
        InvalidInput: for equal or unknown knobs, or numbers that are not whole; for tables at other resolutions
            that are not over the same knobs.
    """

    knobs: tuple[str, ...]
    divisors: tuple[int, ...]
    macs_terms: Polynomial
    params_terms: Polynomial
    weight_bytes_terms: Polynomial
    peak_activation_bytes_terms: tuple[Polynomial, ...]
    at_resolution: Mapping[int, CostTable] = field(default_factory=dict)
    _programs: dict[tuple[str, ...], _Program] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "knobs", tuple(self.knobs))
        object.__setattr__(self, "divisors", tuple(self.divisors))
        if not all(isinstance(name, str) for name in self.knobs):
            raise InvalidInput(f"the knobs of a cost table must be names, got {self.knobs}")
        if len(set(self.knobs)) < len(self.knobs) or not self.knobs:
            raise InvalidInput(
                f"the knobs of a cost table must be different and at least one, got {self.knobs}"
            )
        if len(self.divisors) != len(self.knobs):
            raise InvalidInput(
                f"a cost table of {len(self.knobs)} knobs needs as many divisors, got {len(self.divisors)}"
            )
        for name, divisor in zip(self.knobs, self.divisors, strict=True):
            if whole_number(divisor, f"the divisor of knob {name!r}") < 1:
                raise InvalidInput(f"the divisor of knob {name!r} must be at least 1, got {divisor}")
        for name in COST_NAMES[:3]:
            object.__setattr__(
                self, f"{name}_terms", _checked(name, getattr(self, f"{name}_terms"), self.knobs)
            )
        steps = tuple(
            _checked("peak_activation_bytes", step, self.knobs) for step in self.peak_activation_bytes_terms
        )
        object.__setattr__(self, "peak_activation_bytes_terms", steps)
        self._check_resolutions()

    def _check_resolutions(self) -> None:
        if self.at_resolution and RESOLUTION_KNOB not in self.knobs:
            raise InvalidInput(
                f"costs at other resolutions need the knob {RESOLUTION_KNOB!r}, the knobs are {self.knobs}"
            )
        for choice, table in self.at_resolution.items():
            whole_number(choice, f"a choice of knob {RESOLUTION_KNOB!r}")
            if (table.knobs, table.divisors) != (self.knobs, self.divisors) or table.at_resolution:
                raise InvalidInput(
                    f"the costs at resolution {choice} must be over the same knobs in the same units, and of that one "
                    f"resolution, got {table.knobs}"
                )

    def __hash__(self) -> int:
        return hash((self.knobs, self.divisors))

    def macs(self, x: Ints) -> Ints:
        """Multiply-adds at batch 1 of canonical rows: `[num_configs, num_knobs]` to `[num_configs]`."""
        return self.evaluate(x, ("macs",))["macs"]

    def params(self, x: Ints) -> Ints:
        """Numbers of parameters of canonical rows: `[num_configs, num_knobs]` to `[num_configs]`."""
        return self.evaluate(x, ("params",))["params"]

    def weight_bytes(self, x: Ints) -> Ints:
        """Bytes of the weights of canonical rows: `[num_configs, num_knobs]` to `[num_configs]`."""
        return self.evaluate(x, ("weight_bytes",))["weight_bytes"]

    def peak_activation_bytes(self, x: Ints) -> Ints:
        """Peak bytes of live tensors of canonical rows: `[num_configs, num_knobs]` to `[num_configs]`."""
        return self.evaluate(x, ("peak_activation_bytes",))["peak_activation_bytes"]

    def evaluate(self, x: Ints, names: Iterable[str] = COST_NAMES) -> dict[str, Ints]:
        """Evaluates several costs at once, which shares their common products.

        Args:
            x: canonical rows `[num_configs, num_knobs]`, as `SearchSpace.encode` returns them.
            names: members of `COST_NAMES`.

        Returns:
            For each name exact int64 `[num_configs]`.

        Raises:
            InvalidInput: for an unknown name, a wrong shape, or a value of 2**53 or more, which is not exact.
        """
        names = tuple(dict.fromkeys(names))
        for name in names:
            if name not in COST_NAMES:
                raise InvalidInput(
                    f"a cost is one of {', '.join(COST_NAMES)}, got {name!r}{nearest_names(name, COST_NAMES)}"
                )
        x = np.asarray(x)
        if x.ndim != 2 or x.shape[1] != len(self.knobs) or not np.issubdtype(x.dtype, np.integer):
            shape = f"[num_configs, {len(self.knobs)}]"
            raise InvalidInput(f"encoded configs must be integers {shape}, got {x.dtype} {list(x.shape)}")
        return self._at_each_resolution(x, names) if self.at_resolution else _run(self._program(names), x)

    def _at_each_resolution(self, x: Ints, names: tuple[str, ...]) -> dict[str, Ints]:
        results = {name: np.empty(len(x), dtype=np.int64) for name in names}
        column = x[:, self.knobs.index(RESOLUTION_KNOB)]
        marks = {choice: column == choice for choice in self.at_resolution}
        tables = [(self, ~np.logical_or.reduce(list(marks.values())))]
        tables += [(self.at_resolution[choice], rows) for choice, rows in marks.items()]
        for table, rows in tables:
            for name, values in _run(table._program(names), x[rows]).items():
                results[name][rows] = values
        return results

    def _program(self, names: tuple[str, ...]) -> _Program:
        if names not in self._programs:
            self._programs[names] = _compile(self, names)
        return self._programs[names]


def _checked(cost: str, terms: object, knobs: tuple[str, ...]) -> dict[tuple[str, ...], int]:
    if not isinstance(terms, Mapping):
        raise InvalidInput(f"the terms of {cost} must map monomials to coefficients, got {terms!r}")
    checked: dict[tuple[str, ...], int] = {}
    for monomial, coefficient in terms.items():
        if not isinstance(monomial, tuple):
            raise InvalidInput(f"a monomial of {cost} must be a tuple of knob names, got {monomial!r}")
        if strange := [name for name in monomial if name not in knobs]:
            hint = nearest_names(strange[0], knobs)
            raise InvalidInput(f"a monomial of {cost} names the unknown knob {strange[0]!r}{hint}")
        key = tuple(sorted(monomial))
        checked[key] = checked.get(key, 0) + whole_number(coefficient, f"a coefficient of {cost}")
    return {monomial: coefficient for monomial, coefficient in checked.items() if coefficient}


class _Program(NamedTuple):
    """Products of rows, then sums of rows. Row 0 is 1, then one row per knob, then one per product."""

    divided: list[tuple[int, int]]  # row, divisor
    products: list[tuple[int, int]]  # the two factors of each product row
    coefficients: _Floats  # [num_sums, num_rows]
    magnitudes: _Floats | None  # of the coefficients, where some are negative
    outputs: dict[str, slice]  # the sums of which a cost is the largest


def _compile(table: CostTable, names: Sequence[str]) -> _Program:
    sums: list[Polynomial] = []
    outputs = {}
    for name in names:
        terms = getattr(table, f"{name}_terms")
        start = len(sums)
        sums += (terms or ({},)) if isinstance(terms, tuple) else (terms,)
        outputs[name] = slice(start, len(sums))
    row_of = {name: row for row, name in enumerate(table.knobs, start=1)}
    monomials = list(dict.fromkeys(monomial for terms in sums for monomial in terms))
    products, final = _factor([tuple(row_of[name] for name in m) for m in monomials], len(row_of) + 1)
    place = dict(zip(monomials, final, strict=True))
    coefficients = np.zeros((len(sums), 1 + len(row_of) + len(products)))
    for number, terms in enumerate(sums):
        for monomial, coefficient in terms.items():
            coefficients[number, place[monomial]] = coefficient
    magnitudes = np.abs(coefficients) if (coefficients < 0).any() else None
    divided = [(row_of[name], d) for name, d in zip(table.knobs, table.divisors, strict=True) if d > 1]
    return _Program(divided, products, coefficients, magnitudes, outputs)


def _factor(monomials: list[tuple[int, ...]], next_row: int) -> tuple[list[tuple[int, int]], list[int]]:
    """Finds few products of two rows that build all monomials, the most common pair first.

    Returns:
        The factors of the new rows `next_row`, `next_row + 1`, ..., and the row of each monomial.
    """
    products: list[tuple[int, int]] = []
    todo = [sorted(monomial) or [0] for monomial in monomials]
    holding: dict[tuple[int, int], set[int]] = defaultdict(set)  # by pair, the monomials in which it is
    for number, factors in enumerate(todo):
        for pair in itertools.combinations(factors, 2):
            holding[pair].add(number)
    ranked = [(-len(numbers), -a, -b) for (a, b), numbers in holding.items()]
    heapq.heapify(ranked)
    while ranked:
        count, *negative = heapq.heappop(ranked)
        a, b = pair = (-negative[0], -negative[1])
        if len(holding[pair]) != -count or not count:
            continue  # it has become rarer
        changed: set[tuple[int, int]] = set()
        for number in holding.pop(pair):
            factors = todo[number]
            before = set(itertools.combinations(factors, 2))
            factors.remove(a)
            factors.remove(b)
            factors.append(next_row + len(products))
            after = set(itertools.combinations(factors, 2))
            for other in before:
                holding[other].discard(number)
            for other in after:
                holding[other].add(number)
            changed |= before | after
        for other in changed:
            heapq.heappush(ranked, (-len(holding[other]), -other[0], -other[1]))
        products.append(pair)
    return products, [factors[0] for factors in todo]


def _run(program: _Program, x: Ints) -> dict[str, Ints]:
    results = {name: np.empty(len(x), dtype=np.int64) for name in program.outputs}
    num_rows, size = program.coefficients.shape[1], min(CHUNK_ROWS, len(x))
    values, by_config = np.ones((num_rows, size)), np.empty((size, x.shape[1]))
    views = _views(program, values)
    for start in range(0, len(x), CHUNK_ROWS):
        chunk = x[start : start + CHUNK_ROWS]
        if len(chunk) < size:
            size = len(chunk)
            values, by_config = values[:, :size], by_config[:size]
            views = _views(program, values)
        by_config[...] = chunk  # reading in order first makes turning twice as fast
        values[1 : x.shape[1] + 1] = by_config.T
        for row, divisor in program.divided:
            np.floor_divide(values[row], divisor, out=values[row])
        for a, b, product in views:
            np.multiply(a, b, product)
        sums = program.coefficients @ values  # [num_sums, size]
        bounds = sums if program.magnitudes is None else program.magnitudes @ values
        if not bounds.max(initial=0.0) < EXACT_LIMIT:
            raise InvalidInput(
                f"costs must stay below 2**53 to be exact, got about {bounds.max():.3g}; "
                "the model or its input is too large for this table"
            )
        for name, part in program.outputs.items():
            results[name][start : start + size] = sums[part].max(axis=0)
    return results


def _views(program: _Program, values: _Floats) -> list[tuple[_Floats, _Floats, _Floats]]:
    first = len(values) - len(program.products)
    return [(values[a], values[b], values[first + i]) for i, (a, b) in enumerate(program.products)]
