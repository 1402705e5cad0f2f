"""Latency predictors on tables of many devices: from few measurements, and from other devices' models.

Each (table, device) is learnt once from all training rows, which is the floor, and each (table, device, seed) is one
more file below runs/latency/tables, so a broken-off call goes on.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import RidgeCV

from benchmarks.evidence.latency_page import write_page
from benchmarks.evidence.latency_tabled import OURS, SEEDS
from benchmarks.latency_tables import TABLES, LatencyTable, family_of
from predictors import LatencyPredictor, TransferPredictor, coverage
from predictors.features import Features
from predictors.latency_process import LatencyProcess

COMMAND = "python -m benchmarks.evidence.latency_tables"
RUNS = Path("runs") / "latency" / "tables"
SPLIT = 10
SIZES, TRANSFER_SIZES = (20, 50, 200), (10, 30)
PLANNED_UP_TO = 50
TUNED = 500  # rows on which the rival process finds its settings where there are more
PENALTIES = np.logspace(-3, 3, 13)
Predict = Callable[[np.ndarray], np.ndarray]
Found = dict[str, dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="of 10")
    parser.add_argument("--page", action="store_true", help="only write the page from what is there")
    args = parser.parse_args()
    if not args.page:
        tables = [TABLES[name]() for name in args.tables]
        for table in tables:
            for device in table.ms:
                floor(table, device)
        known = {t.name: {device: KnownDevice(t, device) for device in t.ms} for t in tables}
        for seed in SEEDS[: args.seeds]:
            for table in tables:
                for device in table.ms:
                    measure(table, device, seed, known[table.name])
            write_page()
    print(write_page())


def _path(table: LatencyTable, device: str, name: str) -> Path:
    return RUNS / table.name / device / name


def _write(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(found) + "\n", "utf-8")
    beside.replace(path)


def floor(table: LatencyTable, device: str) -> None:
    """Every family's error after learning from all training rows, and what ours then expects of all rows."""
    path = _path(table, device, "floor.json")
    if path.exists():
        return
    train, test = table.split(SPLIT)
    x, ms = table.rows, table.ms[device]
    errors = {name: error(rival(x[train], ms[train])(x[test]), ms[test]) for name, rival in rivals(table)}
    for name in ("knobs", "costs"):
        parts = ours(table, name)._parts
        process = LatencyProcess(parts).fit(x[train], ms[train])
        errors[name] = error(process.expect(x[test]), ms[test])
        if name == OURS[table.name]:
            expected = np.concatenate([process.expect(part) for part in np.array_split(x, 8)])
            amounts = process.amounts
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path.with_suffix(".npz"), ms=expected, amounts=amounts)
    _write(path, errors)
    print(table.name, device, {name: round(value, 2) for name, value in errors.items()}, flush=True)


class KnownDevice:
    """What the model of a device expects that has learnt from all training rows; the table's rows are looked up."""

    def __init__(self, table: LatencyTable, device: str) -> None:
        with np.load(_path(table, device, "floor.npz"), allow_pickle=False) as stored:
            self._expected, self._amounts = stored["ms"], stored["amounts"]
        self._table, self._device = table, device
        self._place = {row.tobytes(): i for i, row in enumerate(table.rows)}
        self._least = table.ms[device].min()

    @cached_property
    def _process(self) -> LatencyProcess:
        train, _ = self._table.split(SPLIT)
        parts = ours(self._table, OURS[self._table.name])._parts
        return LatencyProcess(parts, self._amounts).fit(
            self._table.rows[train], self._table.ms[self._device][train]
        )

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Milliseconds `[num_rows]`."""
        places = [self._place.get(row.tobytes()) for row in np.ascontiguousarray(rows)]
        if None in places:  # probes of the space, where few of its configs are in the table
            return np.asarray(np.maximum(self._unknown(rows.tobytes(), rows.shape), self._least))
        return np.asarray(np.maximum(self._expected[places], self._least))

    @cache  # noqa: B019 - one small answer for each device, for as long as the program runs
    def _unknown(self, content: bytes, shape: tuple[int, int]) -> np.ndarray:
        return self._process.expect(np.frombuffer(content, np.int64).reshape(shape))


def measure(table: LatencyTable, device: str, seed: int, sources: dict[str, KnownDevice]) -> None:
    """Errors and coverage of everything from few rows that the seed draws; and of transfer."""
    path = _path(table, device, f"{seed}.json")
    if path.exists():
        return
    train, test = table.split(SPLIT)
    order = np.random.default_rng((seed, 7)).permutation(train)
    found = {"learning": learning(table, device, order, test), "transfer": {}}
    strange = {name: ms for name, ms in sources.items() if family_of(name) != family_of(device)}
    found["transfer"] = transfer(table, device, order, test, strange)
    _write(path, found)
    shown = {name: {n: round(v, 2) for n, v in rows.items()} for name, rows in found["transfer"].items()}
    print(table.name, device, seed, shown, flush=True)


def learning(table: LatencyTable, device: str, order: np.ndarray, test: np.ndarray) -> Found:
    """Mean errors in percent by method and number of rows; "... coverage" are shares of 90 % intervals."""
    x, ms, found = table.rows, table.ms[device], dict[str, dict[str, float]]()
    configs = table.space.decode(x[test])
    for size in SIZES:
        seen = order[:size]
        for name, rival in rivals(table):
            found.setdefault(name, {})[str(size)] = error(rival(x[seen], ms[seen])(x[test]), ms[test])
        for name in ("knobs", "costs"):
            predictor = ours(table, name).fit_rows(x[seen], ms[seen])
            found.setdefault(name, {})[str(size)] = error(predictor.predict_rows(x[test]), ms[test])
            low, high = predictor.predict_interval(configs)
            found.setdefault(f"{name} coverage", {})[str(size)] = coverage(low, high, ms[test])
        if size <= PLANNED_UP_TO:
            expected = planned(table, ms, order, size)(x[test])
            found.setdefault("planned", {})[str(size)] = error(expected, ms[test])
    return found


def planned(table: LatencyTable, ms: np.ndarray, order: np.ndarray, size: int) -> Predict:
    """Learns from rows of its own choice: half of them before anything is known, the others after these."""
    place = {table.rows[i].tobytes(): i for i in order}
    pool = table.space.decode(table.rows[order[:TUNED]])

    def chosen(predictor: LatencyPredictor, count: int) -> list[int]:
        rows = table.space.encode(predictor.suggest(pool, count))
        return [place[row.tobytes()] for row in rows]

    predictor = ours(table, OURS[table.name])
    seen = chosen(predictor, size // 2)
    seen += chosen(predictor.fit_rows(table.rows[seen], ms[seen]), size - len(seen))
    return ours(table, OURS[table.name]).fit_rows(table.rows[seen], ms[seen]).predict_rows


def transfer(
    table: LatencyTable, device: str, order: np.ndarray, test: np.ndarray, sources: dict[str, KnownDevice]
) -> Found:
    """Mean errors in percent by method and number of points; `sources` are models of all other families."""
    x, ms, found = table.rows, table.ms[device], dict[str, dict[str, float]]()
    place = {row.tobytes(): i for i, row in enumerate(x)}

    costs = table.layers if OURS[table.name] == "costs" else None
    known = list(sources.values())
    pool = table.space.decode(x[order[:TUNED]])
    for size in TRANSFER_SIZES:
        seen = order[:size]
        for name, degree in (("copy, scaled", 0), ("copy, scaled and shifted", 1)):
            expected = copied(table, device, list(sources), seen, test, degree)
            found.setdefault(name, {})[str(size)] = error(expected, ms[test])
        plain = ours(table, OURS[table.name]).fit_rows(x[seen], ms[seen])
        found.setdefault("alone", {})[str(size)] = error(plain.predict_rows(x[test]), ms[test])
        predictor = TransferPredictor(table.space, known, costs).fit_rows(x[seen], ms[seen])
        found.setdefault("transfer", {})[str(size)] = error(predictor.predict_rows(x[test]), ms[test])
        found.setdefault("transfer used", {})[str(size)] = float(predictor.transferred)
        own = TransferPredictor(table.space, known, costs)
        seen = np.array([place[r.tobytes()] for r in table.space.encode(own.suggest(pool, size))])
        own.fit_rows(x[seen], ms[seen])
        found.setdefault("transfer, planned", {})[str(size)] = error(own.predict_rows(x[test]), ms[test])
    return found


def copied(
    table: LatencyTable, device: str, others: list[str], seen: np.ndarray, test: np.ndarray, degree: int
) -> np.ndarray:
    """What the device that fits the seen rows best really took at the others, brought to the same scale."""
    ms, best = table.ms[device][seen], np.inf
    for other in others:
        theirs, there = table.ms[other][seen], table.ms[other][test]
        if degree:
            fit = np.polyfit(theirs, ms, 1)
            here, found = np.polyval(fit, theirs), np.polyval(fit, there)
        else:
            factor = float(theirs @ ms / (theirs @ theirs))
            here, found = factor * theirs, factor * there
        if (miss := float(np.abs(here - ms).mean())) < best:
            best, expected = miss, found
    return expected


def error(expected: np.ndarray, measured: np.ndarray) -> float:
    """Mean |expected - measured| in percent of the mean measured: some devices take nearly no time for dead cells."""
    return float(100 * np.abs(expected - measured).mean() / measured.mean())


def ours(table: LatencyTable, name: str) -> LatencyPredictor:
    return LatencyPredictor(table.space, table.layers if name == "costs" else None)


def rivals(table: LatencyTable) -> Iterator[tuple[str, Callable[[np.ndarray, np.ndarray], Predict]]]:
    """Ridge and a Gaussian process on one-hot columns; and, for comparison, ridge that sees the layers' costs."""
    one_hot = Features(table.space, None, ("one_hot",))

    def with_costs(rows: np.ndarray) -> np.ndarray:
        scales = [layers.max() or 1.0 for layers in table.layers(table.rows)]
        costs = [layers / scale for layers, scale in zip(table.layers(rows), scales, strict=True)]
        return np.concatenate([one_hot(rows), *costs, *(c.sum(axis=1, keepdims=True) for c in costs)], axis=1)

    yield "ridge", lambda x, y: _ridge(one_hot, x, y)
    yield "gp", lambda x, y: _gp(one_hot, x, y)
    yield "ridge with costs", lambda x, y: _ridge(with_costs, x, y)


def _ridge(features: Callable[[np.ndarray], np.ndarray], x: np.ndarray, y: np.ndarray) -> Predict:
    model = RidgeCV(PENALTIES).fit(features(x), y)
    return lambda rows: np.asarray(model.predict(features(rows)))


def _gp(features: Callable[[np.ndarray], np.ndarray], x: np.ndarray, y: np.ndarray) -> Predict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        kernel = ConstantKernel(1.0) * RBF(2.0) + WhiteKernel(0.01)
        model = GaussianProcessRegressor(kernel, normalize_y=True).fit(features(x[:TUNED]), y[:TUNED])
        if len(y) > TUNED:
            model = GaussianProcessRegressor(model.kernel_, optimizer=None, normalize_y=True).fit(
                features(x), y
            )
    return lambda rows: np.asarray(model.predict(features(rows)))


if __name__ == "__main__":
    main()
