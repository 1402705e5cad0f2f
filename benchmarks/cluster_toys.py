"""A search space whose values are a formula, and evaluators that only wait."""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path

import numpy as np

from search_spaces import CostTable, Knob, SearchSpace, SubnetConfig
from subnet_search.record import Evaluation, Objective, hypervolume

LAYERS, WIDTHS = 8, tuple(range(8, 72, 8))
SPACE = SearchSpace(tuple(Knob(f"layer{i}", WIDTHS) for i in range(LAYERS)))
SHARES = tuple(9 * 4**power for power in (3, 3, 2, 2, 1, 1, 0))
MACS: dict[tuple[str, ...], int] = {(f"layer{i}", f"layer{i + 1}"): share for i, share in enumerate(SHARES)}
COSTS = CostTable(SPACE.names, (8,) * LAYERS, MACS, {(): 1}, {(): 4}, ({(): 4},))
OBJECTIVES = (Objective("score_percent", "max"), Objective("macs", "min"))
NEEDS = np.random.default_rng(7).uniform(6, 40, LAYERS)  # channels from which a layer has enough


def worth(config: SubnetConfig) -> Evaluation:
    """A layer that is too narrow costs accuracy, whatever the others are; and so does each worst neighbour."""
    rows = SPACE.encode([config])
    return Evaluation(config, (float(scores(rows)[0]), float(COSTS.macs(rows)[0])))


def scores(rows: np.ndarray) -> np.ndarray:
    """The same for rows `[num_rows, num_knobs]`: percent `[num_rows]`."""
    lack = np.exp(-rows / NEEDS)
    found: np.ndarray = 100 * np.prod(1 - 0.5 * lack, axis=1) - 5 * np.max(lack[:, 1:] * lack[:, :-1], axis=1)
    return found


def true_volume() -> float:
    """The hypervolume of the true front, found by looking at every sub-net, some at a time."""
    grid = np.stack(np.meshgrid(*[WIDTHS] * (LAYERS - 2), indexing="ij"), axis=-1).reshape(-1, LAYERS - 2)
    best: list[np.ndarray] = []
    for first in itertools.product(WIDTHS, repeat=2):
        rows = np.column_stack([np.tile(first, (len(grid), 1)), grid])
        points = np.column_stack([-scores(rows), COSTS.macs(rows)])  # [num_rows, 2], both to be low
        points = points[np.lexsort((points[:, 0], points[:, 1]))]
        lowest = np.minimum.accumulate(points[:, 0])
        best.append(points[np.concatenate([[True], points[1:, 0] < lowest[:-1]])])
    bound = np.array([-REFERENCE["score_percent"], REFERENCE["macs"]])
    return hypervolume(np.concatenate(best), bound)


REFERENCE = dict(
    zip(
        ("score_percent", "macs"),
        (worth(SPACE.smallest()).values[0], worth(SPACE.largest()).values[1]),
        strict=True,
    )
)


class WaitingEvaluator:
    """Answers after a while, which is all it costs."""

    objectives = OBJECTIVES
    context = "waiting"

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s

    def __call__(self, config: SubnetConfig) -> Evaluation:
        time.sleep(self.wait_s)
        return worth(config)


def make_waiting(wait_s: float) -> WaitingEvaluator:
    """For workers."""
    return WaitingEvaluator(wait_s)


class TroubledEvaluator(WaitingEvaluator):
    """Writes down each evaluation that comes to its end; about the largest sub-net it does what `trouble` says."""

    def __init__(self, folder: str, trouble: str, wait_s: float) -> None:
        super().__init__(wait_s)
        self.folder, self.trouble = Path(folder), trouble

    def __call__(self, config: SubnetConfig) -> Evaluation:
        if config == SPACE.largest():
            self._be_in_trouble()
        found = super().__call__(config)
        with (self.folder / "calls").open("a") as file:
            file.write(f"{config.key}\n")
        return found

    def _be_in_trouble(self) -> None:
        first = not (self.folder / "first").exists()
        (self.folder / "first").touch()
        if self.trouble == "killed once" and first:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.trouble == "killed always":
            os._exit(137)
        if self.trouble == "no memory":
            raise MemoryError("cannot allocate 3 TiB")
        if self.trouble == "hangs deaf":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        if self.trouble.startswith("hangs"):
            time.sleep(600)


def make_troubled(folder: str, trouble: str = "", wait_s: float = 0.05) -> TroubledEvaluator:
    """For workers."""
    return TroubledEvaluator(folder, trouble, wait_s)
