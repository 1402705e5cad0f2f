"""What a config looks like to a model: one-hot, ordinal, and what each layer costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from search_spaces import CostTable, InvalidInput, SearchSpace

from .base import Floats

FeatureKind = Literal["knobs", "one_hot", "cost", "layer_costs"]
COSTS = ("macs", "params")
PROBES = 512  # rows of the space from which the range of costs is taken


@dataclass(frozen=True)
class Features:
    """Turns canonical rows into numbers around -1 to 1.

    - "knobs": ordered knobs as one number (the place of the choice, 0 to 1), unordered ones one-hot; knobs that
      may lose their meaning have one column more that says so. What kernels and linear models like.
    - "one_hot": one column for each choice of every knob.
    - "cost": logarithms of whole costs: those of the cost table, and of `exact` functions.
    - "layer_costs": for each knob what its value adds: the share of the multiply-adds that would go were it at
      its smallest. It sees through divisors, couplings and skipped blocks, whatever the table is made of.

    Attributes:
        space: whose rows are described.
        costs: its cost table, needed for "layer_costs".
        kinds: which columns, in this order.
        exact: closed forms of other costs: rows `[num_configs, num_knobs]` to values `[num_configs]`.

    Raises:
        InvalidInput: for an unknown kind, or "layer_costs" without a cost table.
    """

    space: SearchSpace
    costs: CostTable | None = None
    kinds: tuple[FeatureKind, ...] = ("knobs",)
    exact: tuple[Callable[[np.ndarray], np.ndarray], ...] = ()

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in get_args(FeatureKind):
                raise InvalidInput(f"features are {', '.join(get_args(FeatureKind))}, got {kind!r}")
        if self.costs is None and "layer_costs" in self.kinds:
            raise InvalidInput('features "layer_costs" need the space\'s cost table: costs=...')

    def __call__(self, rows: NDArray[np.integer]) -> Floats:
        """Canonical rows `[num_configs, num_knobs]` to features `[num_configs, num_features]`."""
        whole: NDArray[np.int64] = np.asarray(rows, dtype=np.int64)
        return np.concatenate([self._of_kind(kind, whole) for kind in self.kinds], axis=1)

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """Columns that belong together have one number `[num_features]`, from 0: those of a knob, each cost."""
        numbers: list[int] = []
        for kind in self.kinds:
            start = max(numbers, default=-1) + 1
            if kind in ("knobs", "one_hot"):
                widths = [len(columns) for columns in self._columns(kind)]
            else:
                widths = [1] * self._of_kind(kind, self._smallest).shape[1]
            numbers += [start + i for i, width in enumerate(widths) for _ in range(width)]
        return np.array(numbers, dtype=np.int64)

    @cached_property
    def _smallest(self) -> NDArray[np.int64]:
        return self.space.encode([self.space.smallest()])

    @cached_property
    def _may_rest(self) -> frozenset[str]:
        return frozenset(self.space.inactive_when)

    def _columns(self, kind: FeatureKind) -> list[list[Callable[[np.ndarray, np.ndarray], Floats]]]:
        """For each knob its columns, each a function of the knob's values and of whether they mean something."""
        table: list[list[Callable[[np.ndarray, np.ndarray], Floats]]] = []
        for knob in self.space.knobs:
            if kind == "one_hot" or (knob.kind == "choice" and len(knob.choices) > 2):
                columns = [_is(choice) for choice in knob.choices]
            else:
                columns = [_place(knob.choices)]
            if knob.name in self._may_rest:
                columns.append(_rests)
            table.append(columns)
        return table

    def _of_kind(self, kind: FeatureKind, rows: NDArray[np.int64]) -> Floats:
        if kind == "cost":
            logs = [(_logarithm(values) - low) / span for values, (low, span) in self._scaled(rows)]
            return np.stack(logs, axis=1) if logs else np.empty((len(rows), 0))
        if kind == "layer_costs":
            return self._layer_costs(rows)
        active = self.space.active_rows(rows)
        columns = [
            column(rows[:, i], active[:, i])
            for i, of_knob in enumerate(self._columns(kind))
            for column in of_knob
        ]
        return np.stack(columns, axis=1)

    def _whole_costs(self, rows: NDArray[np.int64]) -> list[np.ndarray]:
        table = [] if self.costs is None else list(self.costs.evaluate(rows, COSTS).values())
        return [*table, *(np.asarray(function(rows)) for function in self.exact)]

    @cached_property
    def _ranges(self) -> list[tuple[float, float]]:
        rows = self.space.encode(self.space.sample(np.random.default_rng(0), PROBES))
        logs = [_logarithm(values) for values in self._whole_costs(rows)]
        return [(float(log.mean()), max(float(log.std()) * 2, 1e-9)) for log in logs]

    def _scaled(self, rows: NDArray[np.int64]) -> Sequence[tuple[np.ndarray, tuple[float, float]]]:
        return list(zip(self._whole_costs(rows), self._ranges, strict=True))

    def _layer_costs(self, rows: NDArray[np.int64]) -> Floats:
        assert self.costs is not None
        macs = self.costs.macs(rows)
        most = max(float(self.costs.macs(self.space.encode([self.space.largest()]))[0]), 1.0)
        saved = np.empty(rows.shape)
        for column, knob in enumerate(self.space.knobs):
            without = rows.copy()
            without[:, column] = knob.smallest
            saved[:, column] = (macs - self.costs.macs(self.space.canonical_rows(without))) / most
        return saved


def _is(choice: int) -> Callable[[np.ndarray, np.ndarray], Floats]:
    return lambda values, active: ((values == choice) & active).astype(np.float64)


def _place(choices: tuple[int, ...]) -> Callable[[np.ndarray, np.ndarray], Floats]:
    order = np.argsort(choices)
    last = max(len(choices) - 1, 1)

    def place(values: np.ndarray, active: np.ndarray) -> Floats:
        found = order[np.searchsorted(np.array(choices)[order], values)]
        return np.asarray(np.where(active, found / last, 0.5))

    return place


def _rests(values: np.ndarray, active: np.ndarray) -> Floats:
    return (~active).astype(np.float64)


def _logarithm(values: np.ndarray) -> Floats:
    return np.asarray(np.log1p(np.maximum(np.asarray(values, dtype=np.float64), 0.0)))
