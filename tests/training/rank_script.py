"""What one rank does in test_distributed_processes.py: `python -m tests.training.rank_script MODE FOLDER`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from search_spaces import SubnetSearchError
from subnet_search.data import Batch
from subnet_search.elastic.supernet import Supernet
from subnet_search.record import create_run, open_run
from subnet_search.settings import TrainSettings
from subnet_search.training import SandwichStep, train
from tests.small import small_splits, small_supernet

SETTINGS = TrainSettings(epochs=2, lr=0.02, warmup_epochs=0.5, device="cpu", checkpoint_seconds=1e-9)
SANDWICH = SandwichStep()
RANK = int(os.environ["RANK"])


def step_with(what: Any, number: int, rank: int) -> Any:
    """The sandwich step, in which `what` happens on one rank in one step."""
    calls = 0

    def step(supernet: Supernet, batch: Batch, rng: np.random.Generator) -> float:
        nonlocal calls
        calls += 1
        if calls == number and rank == RANK:
            what()
        return SANDWICH(supernet, batch, rng)

    step.__qualname__ = repr(SANDWICH)
    return step


def fail(folder: Path) -> None:
    """Rank 1 runs out of memory in its third step, and its process lives on."""

    def out_of_memory() -> None:
        raise torch.OutOfMemoryError("no memory left")

    try:
        train(small_supernet(), small_splits(), step_with(out_of_memory, 3, 1), SETTINGS)
    except (torch.OutOfMemoryError, SubnetSearchError) as error:
        (folder / f"failed-{RANK}").write_text(str(error))


def resume(folder: Path) -> None:
    """Trains unbroken, then broken by Ctrl-C on rank 1 and on; writes both results of this rank."""
    whole = small_supernet(dropout=0.2)
    losses = train(whole, small_splits(), SANDWICH, SETTINGS).losses
    broken = step_with(lambda: os.kill(os.getpid(), signal.SIGINT), 4, 1)
    run = create_run(folder / "run", "") if RANK == 0 else None
    stopped = ""
    try:
        train(small_supernet(dropout=0.2), small_splits(), broken, SETTINGS, run)
    except (KeyboardInterrupt, SubnetSearchError) as stop:
        stopped = type(stop).__name__
    if run is not None:
        assert run.read_json("checkpoint.json")["step"] == 4
        run.close()
        run = open_run(folder / "run")
    resumed = small_supernet(seed=RANK, dropout=0.2)  # whatever another rank begins with
    again = train(resumed, small_splits(), SANDWICH, SETTINGS, run).losses
    assert again == losses
    save_file(whole.state_dict(), folder / f"whole-{RANK}.safetensors")
    save_file(resumed.state_dict(), folder / f"resumed-{RANK}.safetensors")
    (folder / f"stopped-{RANK}").write_text(stopped)
    fail(folder)


def die(folder: Path) -> None:
    """Rank 1 is killed in its third step."""
    killed = step_with(lambda: os.kill(os.getpid(), signal.SIGKILL), 3, 1)
    with create_run(folder / "run", "") as run:
        train(small_supernet(), small_splits(), killed, SETTINGS, run if RANK == 0 else None)


if __name__ == "__main__":
    {"resume": resume, "die": die}[sys.argv[1]](Path(sys.argv[2]))
