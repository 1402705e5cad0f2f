"""The command line under torchrun: rank 0 walks the road, the other ranks train with it and write nothing."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from search_spaces import InvalidInput, SubnetSearchError
from subnet_search.pipeline import read_settings
from subnet_search.planning import Plan
from subnet_search.record import open_run
from subnet_search.record.run import SETTINGS
from subnet_search.stages import STAGES
from subnet_search.training.distributed import Disagreement, StoppedElsewhere, agree, alone, current_world
from subnet_search.training.orders import Order, Orders, leading
from subnet_search.workbench import Workbench, set_up_process


def run_as_rank(arguments: list[str], run_command: Callable[[list[str]], int]) -> int:
    """Runs one command line on all ranks that torchrun started, and returns this one's exit code.

    Args:
        arguments: of the command line, the same everywhere.
        run_command: what runs it, on rank 0.
    """
    try:
        world = current_world()
        agree(world, {"the command": " ".join(arguments)})
    except InvalidInput as error:
        return _leave(f"refused: {error}", 2) if int(os.environ["RANK"]) == 0 else 2
    except SubnetSearchError as error:
        return _leave(f"failed: {error}", 1)
    orders = Orders(_store(), world)
    if not world.leads:
        return follow(orders)
    with leading(orders):
        return run_command(arguments)


def follow(orders: Orders) -> int:
    """Trains where rank 0 calls for it, until that has no more orders; returns the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # a handler in Python would not run while torch waits
    try:
        with alone():
            while order := orders.take():
                _train_along(orders, order)
    except Exception as error:
        return _leave(f"rank {orders.world.rank}: failed: {type(error).__name__}: {error}", 1)
    return 0


def _train_along(orders: Orders, order: Order) -> None:
    """One stage of a run that rank 0 holds; what stops all ranks alike is told by rank 0."""
    try:
        bench = _workbench(order)
    except (InvalidInput, OSError) as error:
        orders.answer(f"{error} (on {socket.gethostname()})")
        return
    orders.answer()
    [stage] = [stage for stage in STAGES if stage.name == order["stage"]]
    try:
        with alone(False):
            stage.work(bench)
    except (Disagreement, StoppedElsewhere):
        return


def _workbench(order: Order) -> Workbench:
    """What a rank works with that sees the run folder and writes nothing there."""
    folder = Path(order["folder"])
    if not folder.is_dir():
        raise InvalidInput(
            f"it does not see the run folder {folder}; keep runs where all nodes see them under one path"
        )
    run = open_run(folder, write=False)
    if run.read(SETTINGS).decode() != order["settings"]:
        raise InvalidInput(
            f"{folder} is another run there, with other settings; let all nodes see the same folder under that path"
        )
    recipe = read_settings(run)
    bench = Workbench(run, recipe, lambda message: None, leads=False)
    bench.plan = Plan({order["stage"]: int(order["amount"])}, {})
    set_up_process(recipe)
    return bench


def _store() -> Any:
    """A part of the table that torchrun keeps for its processes."""
    store, _, _ = next(iter(rendezvous("env://")))
    return PrefixStore("subnet-search", store)


def _leave(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code
