"""The numbers of part 2: what stands below runs/latency/tables, put together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency_tables import FAMILIES, TEST_ROWS, TRAIN_ROWS, family_of

SEEDS = range(10, 20)
DEVICES = 27  # settings in each table
OURS = {"nas-bench-201": "knobs", "fbnet": "costs"}  # chosen on the development devices
DEVELOPMENT = {
    "nas-bench-201": ("1080ti_1", "gold_6240", "samsung_a50", "pixel3", "eyeriss", "titanx_256"),
    "fbnet": ("1080ti_1", "2080ti_64", "gold_6240", "raspi4", "samsung_a50"),
}
METHODS = ("ridge", "gp", "knobs", "costs", "planned", "ridge with costs")
RIVALS = ("ridge", "gp")
SIZES, TRANSFER_SIZES = ("20", "50", "200"), ("10", "30")
TRANSFERS = ("copy, scaled", "copy, scaled and shifted", "alone", "transfer", "transfer, planned")
NOTHING = 0.02  # points of error that are no difference: some devices are exactly additive

Found = Mapping[str, Mapping[int, Mapping[str, Any]]]  # by device and seed


def tabled(runs: Path) -> dict[str, Any] | None:
    """Errors, excess and transfer of each table; None if nothing was run."""
    found = {table: _read(runs / table) for table in OURS}
    found = {table: devices for table, devices in found.items() if devices}
    if not found:
        return None
    floors = {
        table: {d: _json(runs / table / d / "floor.json") for d in devices}
        for table, devices in found.items()
    }
    seeds = sorted({seed for devices in found.values() for of in devices.values() for seed in of})
    present = sum(len(of) for devices in found.values() for of in devices.values())
    wanted = DEVICES * len(OURS) * len(SEEDS)
    return {
        "seeds": f"{seeds[0]} to {seeds[-1]}",
        "split": f"{TRAIN_ROWS} training rows and {TEST_ROWS} judged, no isomorphic cells on both sides",
        "wanted": wanted,
        "missing": wanted - present,
        "learning": {table: learning(table, devices, floors[table]) for table, devices in found.items()},
        "transfer_methods": list(TRANSFERS),
        "transfer": {
            table: {size: transfer(devices, size) for size in TRANSFER_SIZES}
            for table, devices in found.items()
        },
        "by_family": {
            table: {size: by_family(devices, size) for size in TRANSFER_SIZES}
            for table, devices in found.items()
        },
    }


def _read(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for file in sorted(folder.glob("*/[0-9]*.json")):
        found.setdefault(file.parent.name, {})[int(file.stem)] = _json(file)
    return found


def _json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return content


def learning(table: str, devices: Found, floors: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Means over devices of means over seeds, beside the floors."""
    ours = OURS[table]
    new = [device for device in devices if device not in DEVELOPMENT[table]]
    held = {
        size: np.mean([_mean(devices, d, "learning", f"{ours} coverage", size) for d in devices])
        for size in SIZES
    }
    return {
        "ours": f"ours, {ours}",
        "methods": list(METHODS),
        "devices": len(devices),
        "new_devices": len(new),
        "development": list(DEVELOPMENT[table]),
        "floor": {
            name: float(np.mean([floors[d][name] for d in devices])) for name in METHODS if name != "planned"
        },
        "coverage": ", ".join(f"{100 * share:.0f} % of {size} rows" for size, share in held.items()),
        "sizes": {size: _at_size(size, ours, devices, floors, new) for size in SIZES},
    }


def _at_size(
    size: str, ours: str, devices: Found, floors: Mapping[str, Mapping[str, float]], new: Sequence[str]
) -> dict[str, Any]:
    methods = [
        m for m in METHODS if size in next(iter(next(iter(devices.values())).values()))["learning"].get(m, {})
    ]
    error = {m: {d: _mean(devices, d, "learning", m, size) for d in devices} for m in methods}
    excess = {
        m: {d: error[m][d] - floors[d][ours if m == "planned" else m] for d in devices} for m in methods
    }

    def ratio(among: Sequence[str]) -> float:
        rivals = min(float(np.mean([excess[m][d] for d in among])) for m in RIVALS)
        return float(np.mean([excess[ours][d] for d in among])) / rivals

    best = {d: min(RIVALS, key=lambda m: excess[m][d]) for d in devices}
    half = [d for d in devices if excess[ours][d] <= max(0.5 * excess[best[d]][d], NOTHING)]
    worse = [
        d
        for d in devices
        if _clearly_worse(devices[d], size, ours, best[d], excess[ours][d] - excess[best[d]][d])
    ]
    return {
        "error": {m: float(np.mean(list(error[m].values()))) for m in methods},
        "excess": {m: float(np.mean(list(excess[m].values()))) for m in methods},
        "ratio": ratio(list(devices)),
        "ratio_new": ratio(new) if new else float("nan"),
        "halved": len(half),
        "not_halved": sorted(set(devices) - set(half)),
        "worse": len(worse),
        "worse_devices": worse,
        "by_device": {d: {m: [error[m][d], excess[m][d]] for m in methods} for d in devices},
    }


def _clearly_worse(of: Mapping[int, Mapping[str, Any]], size: str, ours: str, rival: str, gap: float) -> bool:
    apart = [one["learning"][ours][size] - one["learning"][rival][size] for one in of.values()]
    error = float(np.std(apart, ddof=1)) / len(apart) ** 0.5 if len(apart) > 1 else np.inf
    return gap > max(2 * error, NOTHING)


def transfer(devices: Found, size: str) -> dict[str, Any]:
    """For each method mean and worst device; how often other devices were used."""
    rows: dict[str, Any] = {}
    for method in TRANSFERS:
        each = {d: _mean(devices, d, "transfer", method, size) for d in devices}
        worst = max(each, key=lambda d: each[d])
        rows[method] = {
            "mean": float(np.mean(list(each.values()))),
            "worst": each[worst],
            "device": worst,
            "each": each,
        }
    return {
        **rows,
        "used": float(np.mean([_mean(devices, d, "transfer", "transfer used", size) for d in devices])),
    }


def by_family(devices: Found, size: str) -> dict[str, dict[str, float]]:
    """The mean error of each family's devices."""
    found = {}
    for family in FAMILIES:
        members = [d for d in devices if family_of(d) == family]
        if members:
            found[family] = {
                m: float(np.mean([_mean(devices, d, "transfer", m, size) for d in members]))
                for m in TRANSFERS
            }
    return found


def _mean(devices: Found, device: str, part: str, method: str, size: str) -> float:
    return float(np.mean([one[part][method][size] for one in devices[device].values()]))
