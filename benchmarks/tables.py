"""Exhaustive tables of trained networks as search spaces: every config's values are known, and so is the true front."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.folders import data_folder
from search_spaces import Knob, SearchSpace, SubnetConfig
from subnet_search.record import Evaluation, Objective, hypervolume, losses_of

EDGES = ("e01", "e02", "e12", "e03", "e13", "e23")
STAGES = (2, 3, 3)  # searchable layers of each stage of nas-bench-macro
MACS_PER_1X1, MACS_PER_3X3 = 15 * 262_144, 15 * 2_359_296
DEVICES = ("1080ti_1", "gold_6226", "pixel3", "raspi4", "fpga")


@dataclass(frozen=True)
class Table:
    """A space whose every config was evaluated once.

    Attributes:
        name: for files and reports.
        space: the configs.
        objectives: cost to be low, accuracy to be high; `exact` where the cost is arithmetic.
        rows: all canonical configs, encoded `[num_rows, num_knobs]`.
        values: theirs `[num_rows, 2]`.
        macs: multiply-adds of each row `[num_rows]`, which everybody may know beforehand.
    """

    name: str
    space: SearchSpace
    objectives: tuple[Objective, Objective]
    rows: np.ndarray
    values: np.ndarray
    macs: np.ndarray

    def __post_init__(self) -> None:
        if len(self.rows) != self.space.size:
            raise RuntimeError(f"{self.name}: {len(self.rows)} rows for a space of {self.space.size}")
        places = {row.tobytes(): place for place, row in enumerate(self.rows)}
        object.__setattr__(self, "_places", places)
        losses = self.values * [1.0, -1.0]
        low, high = losses.min(axis=0), losses.max(axis=0)
        object.__setattr__(self, "_low", low)
        object.__setattr__(self, "_high", high)
        object.__setattr__(self, "_true", hypervolume((losses - low) / (high - low), np.ones(2)))

    def evaluate(self, config: SubnetConfig) -> Evaluation:
        """What the table says."""
        place = self._places[self.space.encode([config])[0].tobytes()]  # type: ignore[attr-defined]
        return Evaluation(config, tuple(self.values[place].tolist()), source="table")

    def macs_of(self, rows: np.ndarray) -> np.ndarray:
        """Multiply-adds of canonical rows `[num_rows, num_knobs]`: `[num_rows]`."""
        places = [self._places[row.tobytes()] for row in np.ascontiguousarray(rows)]  # type: ignore[attr-defined]
        return self.macs[places]

    def regret(self, evaluations: Sequence[Evaluation]) -> float:
        """1 - HV / HV of the true front, in percent; the reference is the largest cost and smallest accuracy."""
        losses = losses_of(self.objectives, evaluations)
        low, high = self._low, self._high  # type: ignore[attr-defined]
        found = hypervolume((losses - low) / (high - low), np.ones(2))
        return 100 * (1 - found / self._true)  # type: ignore[attr-defined,no-any-return]


def macro_unmerged() -> Table:
    """nas-bench-macro, all 3^8 codes; codes of one network differ only by name."""
    found = _read("nas-bench-macro/nas_bench_macro_cifar10.csv")
    space = SearchSpace(tuple(Knob(f"op{i}", (0, 1, 2), "choice") for i in range(8)))
    rows = np.array([[int(row[name]) for name in space.names] for row in found])
    return _macro("macro-unmerged", space, rows, found)


def macro_merged() -> Table:
    """nas-bench-macro, one config for each of the 3,969 networks: a stage's later layers are skipped from its end."""
    found = [
        r for r in _read("nas-bench-macro/nas_bench_macro_cifar10.csv") if r["arch"] == r["canonical_arch"]
    ]
    knobs: list[Knob] = []
    conditions: dict[str, tuple[tuple[str, ...], ...]] = {}
    for stage, layers in enumerate(STAGES):
        knobs.append(Knob(f"s{stage}.0", (0, 1, 2), "choice"))
        outer: tuple[str, ...] = ()
        for layer in range(1, layers):
            name = f"s{stage}.{layer}"
            knobs += [Knob(name, (0, 1), "depth"), Knob(f"{name}.op", (1, 2), "choice")]
            if outer:
                conditions[name] = (outer,)
            outer = (*outer, name)
            conditions[f"{name}.op"] = (outer,)
    space = SearchSpace(tuple(knobs), conditions)
    configs = [_macro_config(row["arch"]) for row in found]
    return _macro("macro-merged", space, space.encode(configs), found)


def _macro_config(code: str) -> dict[str, int]:
    config, digits = {}, iter(map(int, code))
    for stage, layers in enumerate(STAGES):
        config[f"s{stage}.0"] = next(digits)
        for layer in range(1, layers):
            digit = next(digits)
            config[f"s{stage}.{layer}"] = int(digit > 0)
            config[f"s{stage}.{layer}.op"] = digit or 2
    return config


def _macro(name: str, space: SearchSpace, rows: np.ndarray, found: Sequence[dict[str, str]]) -> Table:
    values = np.array([[float(row["flops"]), float(row["mean_acc"])] for row in found])
    known = {row.tobytes(): value for row, value in zip(rows, values[:, 0], strict=True)}

    def macs(x: np.ndarray) -> np.ndarray:
        return np.array([known[row.tobytes()] for row in np.ascontiguousarray(x)])

    objectives = (Objective("macs", "min", exact=macs), Objective("top1_percent", "max"))
    return Table(name, space, objectives, rows, values, values[:, 0])


def nas_bench_201(data_set: str, device: str | None = None) -> Table:
    """nas-bench-201: 200-epoch test accuracy against multiply-adds or a device's milliseconds, which are measured."""
    found = _read("nas-bench-201/nas_bench_201.csv")
    space = SearchSpace(tuple(Knob(edge, (0, 1, 2, 3, 4), "choice") for edge in EDGES))
    rows = np.array([[int(row[edge]) for edge in EDGES] for row in found])
    accuracy = np.array([float(row[f"{data_set}_test_200"]) for row in found])
    cost = Objective("macs", "min", exact=_macs_201)
    costs = _macs_201(rows)
    if device is not None:
        with np.load(data_folder() / "nas-bench-201" / "latency_ms.npz", allow_pickle=False) as file:
            cost, costs = Objective("latency_ms", "min"), file[device]
    name = f"201-{data_set}-{device or 'macs'}"
    values = np.stack([costs, accuracy], axis=1)
    return Table(name, space, (cost, Objective("top1_percent", "max")), rows, values, _macs_201(rows))


def _macs_201(x: np.ndarray) -> np.ndarray:
    ones, threes = (x == 2).sum(axis=1), (x == 3).sum(axis=1)
    return np.asarray(7_783_050 + MACS_PER_1X1 * ones + MACS_PER_3X3 * threes, dtype=np.int64)


def _read(path: str) -> list[dict[str, str]]:
    with (Path(data_folder()) / path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _device_table(data_set: str, device: str) -> Callable[[], Table]:
    return lambda: nas_bench_201(data_set, device)


TABLES: dict[str, Callable[[], Table]] = {
    "macro-unmerged": macro_unmerged,
    "macro-merged": macro_merged,
    "201-cifar10-macs": lambda: nas_bench_201("cifar10"),
    "201-cifar100-macs": lambda: nas_bench_201("cifar100"),
    **{f"201-{d}-{device}": _device_table(d, device) for d in ("cifar10", "cifar100") for device in DEVICES},
}
