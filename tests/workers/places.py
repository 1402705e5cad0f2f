"""Evaluators that workers make for themselves: toys that wait, die, hang or count in files."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from search_spaces import CostTable, Knob, SearchSpace, SubnetConfig
from subnet_search.record import Evaluation, Objective

SPACE = SearchSpace(
    (
        Knob("stem", (8, 16, 24, 32)),
        Knob("block", (0, 1), "depth"),
        Knob("block.hidden", tuple(range(8, 72, 8))),
        Knob("head", tuple(range(8, 72, 8))),
    ),
    {"block.hidden": (("block",),)},
)
MACS = {("stem",): 3, ("block", "block.hidden", "stem"): 2, ("head", "stem"): 5}
COSTS = CostTable(SPACE.names, (8, 1, 8, 8), MACS, {(): 1}, {(): 4}, ({(): 4},))
OBJECTIVES = (Objective("score_percent", "max"), Objective("macs", "min"))


def worth(config: SubnetConfig) -> Evaluation:
    score = (
        60 + np.sqrt(config["stem"]) + np.sqrt(config["head"]) + config["block"] * config["block.hidden"] / 8
    )
    return Evaluation(config, (float(score), float(COSTS.macs(SPACE.encode([config]))[0])))


def note(folder: str, what: str) -> int:
    """Appends a line that tells of this process; how many lines there are now."""
    path = Path(folder, "calls")
    with path.open("a") as file:
        file.write(f"{what} {os.getpid()}\n")
    return len(path.read_text().splitlines())


class Plain:
    """Answers after `wait_s`, and writes down in `folder` which process did."""

    objectives = OBJECTIVES
    context = "toy1"

    def __init__(
        self,
        folder: str = "",
        wait_s: float = 0.0,
        trouble: Callable[[SubnetConfig], None] = lambda config: None,
    ) -> None:
        self.folder, self.wait_s, self.trouble = folder, wait_s, trouble

    def __call__(self, config: SubnetConfig) -> Evaluation:
        self.trouble(config)
        time.sleep(self.wait_s)
        if self.folder:
            note(self.folder, config.key)
        return worth(config)


def plain(folder: str = "", wait_s: float = 0.0) -> Plain:
    return Plain(folder, wait_s)


def uneven(folder: str = "") -> Plain:
    """Later questions may be answered sooner."""
    return Plain(folder, trouble=lambda config: time.sleep(0.002 * (int(config.key[:4], 16) % 13)))


DYING, POISON, LARGE, HANGING, DEAF = (SPACE.uniform(share) for share in (1.0, 0.9, 0.66, 0.52, 0.4))


def troubled(folder: str) -> Plain:
    """One sub-net kills its worker once, one always, one has no memory, one hangs, one hangs deaf to the alarm."""

    def trouble(config: SubnetConfig) -> None:
        if config == DYING and not Path(folder, "died").exists():
            Path(folder, "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if config == POISON:
            note(folder, "poisoned")
            os._exit(137)  # as where the system ends what needs too much memory
        if config == LARGE:
            raise MemoryError("cannot allocate 3 TiB")
        if config == DEAF:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        if config in (HANGING, DEAF):
            time.sleep(600)

    return Plain(folder, trouble=trouble)


class Timed(Plain):
    objectives = (Objective("latency_ms", "min"), Objective("macs", "min"))


def timed() -> Timed:
    return Timed()


def threads() -> Plain:
    """Says how many threads torch has, as a failure."""
    import torch

    def tell(config: SubnetConfig) -> None:
        raise RuntimeError(f"{torch.get_num_threads()} threads")

    return Plain(trouble=tell)
