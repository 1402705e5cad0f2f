"""Latency tables of many devices as search spaces: nas-bench-201 and FBNet, with what their layers cost."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.folders import data_folder
from benchmarks.tables import EDGES, MACS_PER_1X1, MACS_PER_3X3
from predictors.latency_layers import LayerCosts
from search_spaces import Knob, SearchSpace

TRAIN_ROWS, TEST_ROWS = 2_000, 1_000
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "NVIDIA GPUs": ("1080ti", "2080ti", "titan"),
    "Xeon CPUs": ("gold", "silver"),
    "phones": ("essential", "pixel", "samsung"),
    "Raspberry Pi": ("raspi",),
    "FPGA": ("fpga",),
    "Eyeriss": ("eyeriss",),
}
# FBNet (arXiv:1812.03443, table 1) as HW-NAS-Bench builds it for images of 32 pixels
FBNET_LAYERS, FBNET_CHANNELS = (1, 4, 4, 4, 4, 4, 1), (16, 24, 32, 64, 112, 184, 352)
FBNET_STRIDES, FBNET_STEM, FBNET_PX = (1, 1, 2, 2, 1, 2, 1), 16, 32
FBNET_BLOCKS = tuple(
    (kernel, expansion, groups) for kernel in (3, 5) for expansion, groups in ((1, 1), (1, 2), (3, 1), (6, 1))
)


@dataclass(frozen=True)
class LatencyTable:
    """A space, some of its configs, and how long they take on many devices.

    Attributes:
        name: for files and reports.
        space: of the configs.
        rows: encoded configs `[num_rows, num_knobs]`.
        ms: milliseconds by device, `[num_rows]` each.
        twins: rows of one number build the same network `[num_rows]`: they stay on one side of a split.
        layers: what each layer of rows costs.
    """

    name: str
    space: SearchSpace
    rows: np.ndarray
    ms: Mapping[str, np.ndarray]
    twins: np.ndarray
    layers: LayerCosts

    def split(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Places of at most 2,000 rows to learn from and 1,000 to judge by, with no twins across."""
        rng = np.random.default_rng((seed, 201))
        classes = rng.permutation(np.unique(self.twins))
        left = np.isin(self.twins, classes[: int(0.8 * len(classes))])
        train, test = np.flatnonzero(left), np.flatnonzero(~left)
        return rng.permutation(train)[:TRAIN_ROWS], rng.permutation(test)[:TEST_ROWS]


def family_of(device: str) -> str:
    """The family of a device setting."""
    return next(name for name, starts in FAMILIES.items() if device.startswith(starts))


def nas_bench_201() -> LatencyTable:
    """All 15,625 cells; what an edge costs follows from the operation on it."""
    folder = data_folder() / "nas-bench-201"
    with (folder / "nas_bench_201.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    with np.load(folder / "latency_ms.npz", allow_pickle=False) as stored:
        ms = {name: stored[name] for name in stored.files}
    space = SearchSpace(tuple(Knob(edge, (0, 1, 2, 3, 4), "choice") for edge in EDGES))
    macs, weights = np.array([0, 0, MACS_PER_1X1, MACS_PER_3X3, 0]), np.array([0, 0, 1, 9, 0])

    def layers(rows: np.ndarray) -> Sequence[np.ndarray]:
        return [macs[rows].astype(np.float64), weights[rows].astype(np.float64)]

    rows = np.array([[int(row[edge]) for edge in EDGES] for row in found])
    return LatencyTable(
        "nas-bench-201", space, rows, ms, np.array([int(r["iso_class"]) for r in found]), layers
    )


def fbnet() -> LatencyTable:
    """5,000 networks of 22 layers; what a block costs follows from its place."""
    with np.load(data_folder() / "help-fbnet-latency" / "fbnet_latency.npz", allow_pickle=False) as stored:
        rows = stored["arch"].astype(np.int64)
        ms = {name.removeprefix("ms_"): stored[name] for name in stored.files if name != "arch"}
    space = SearchSpace(tuple(Knob(f"layer{i:02d}", tuple(range(9)), "choice") for i in range(22)))
    blocks = fbnet_blocks()

    def layers(rows: np.ndarray) -> Sequence[np.ndarray]:
        of_rows = blocks[np.arange(22), rows]  # [num_rows, 22, 4]
        return list(np.moveaxis(of_rows, 2, 0))

    return LatencyTable("fbnet", space, rows, ms, np.arange(len(rows)), layers)


def fbnet_blocks() -> np.ndarray:
    """Multiply-adds, weights, numbers written and blocks run of each block at each place, `[22, 9, 4]`.

    A skipped layer that has to halve the image or change channels is a 1x1 convolution.
    """
    found, place, before, px = np.zeros((22, 9, 4)), 0, FBNET_STEM, FBNET_PX
    for count, channels, first in zip(FBNET_LAYERS, FBNET_CHANNELS, FBNET_STRIDES, strict=True):
        for stride in (first, *[1] * (count - 1)):
            after = -(-px // stride)
            for choice, (kernel, expansion, groups) in enumerate(FBNET_BLOCKS):
                inner = before * expansion
                weights = inner * before / groups + inner * kernel**2 + inner * channels / groups
                macs = inner * before / groups * px**2 + (weights - inner * before / groups) * after**2
                written = inner * px**2 + (inner + channels) * after**2
                found[place, choice] = macs, weights, written, 1
            if stride > 1 or before != channels:
                found[place, 8] = before * channels * after**2, before * channels, channels * after**2, 1
            place, before, px = place + 1, channels, after
    return found


TABLES = {"nas-bench-201": nas_bench_201, "fbnet": fbnet}
