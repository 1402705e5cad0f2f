"""The evaluator of a run, made in a worker from the run's folder alone."""

from __future__ import annotations

import socket
from pathlib import Path

from search_spaces import InvalidInput
from subnet_search.measure import LatencyMeter, SupernetEvaluator
from subnet_search.measuring import LATENCIES
from subnet_search.recipe import parse_recipe
from subnet_search.record import open_run
from subnet_search.record.run import SETTINGS
from subnet_search.workbench import Workbench, set_up_process


def evaluator_of(folder: str) -> SupernetEvaluator:
    """What the run's search measures sub-nets with; nothing is written.

    Raises:
        InvalidInput: the folder cannot be seen here, or latencies were measured on another kind of machine.
    """
    bench = bench_of(folder)
    if bench.times_nets:
        stored = bench.run.read_json(LATENCIES)["profile"]
        here = LatencyMeter.profile_of(bench.new_model().to(bench.device), bench.recipe.device)
        if stored != here:
            raise InvalidInput(
                f"the run's latencies were measured on {stored}, and this machine is {here}: they cannot be compared; "
                "use workers of the kind that the run was begun on"
            )
    return bench.evaluator


def bench_of(folder: str) -> Workbench:
    """A workbench on a run that another process writes."""
    if not Path(folder).is_dir():
        raise InvalidInput(
            f"the run folder {folder} cannot be seen on {socket.gethostname()}; keep runs on storage that all nodes "
            "have under the same path (--out)"
        )
    run = open_run(folder, write=False)
    recipe = parse_recipe(run.read(SETTINGS).decode(), f"{folder}/{SETTINGS}")
    bench = Workbench(run, recipe, lambda message: None)
    set_up_process(bench.recipe)
    return bench
