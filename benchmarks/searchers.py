"""Processor time of a proposal of the guided searcher, beside Optuna's TPE on the same answers."""

from __future__ import annotations

import itertools
import time

import numpy as np

from benchmarks.figure import Figure
from search_spaces import CostTable, Knob, SearchSpace, SubnetConfig
from subnet_search.record import Evaluation, Objective
from subnet_search.searchers import Searcher, make_searcher

NUM_KNOBS = 60
ROWS, MANY_ROWS = 400, 5_000
SEEDS = 3
BATCH = 200  # proposals that are timed after many rows: those of one plan
AIM_S, AIM_MANY_S = 0.05, 0.5
SPACE = SearchSpace(tuple(Knob(f"width{i}", tuple(range(8, 72, 8))) for i in range(NUM_KNOBS)))
COSTS = CostTable(
    SPACE.names,
    (8,) * NUM_KNOBS,
    dict.fromkeys(itertools.pairwise(SPACE.names), 1),
    {(): 1},
    {(): 4},
    ({(): 4},),
)
OBJECTIVES = (Objective("macs", "min"), Objective("top1_percent", "max"))


def measure() -> list[Figure]:
    guided = [amortised("guided", 0, ROWS, seed) for seed in range(SEEDS)]
    many = amortised("guided", MANY_ROWS, BATCH, 0)
    tpe = amortised("tpe", 0, ROWS, 0)
    return [
        _figure(f"up to {ROWS} rows", guided, AIM_S, tpe),
        _figure(f"after {MANY_ROWS} rows", [many], AIM_MANY_S, tpe),
    ]


def _figure(when: str, seconds: list[float], aim_s: float, rival_s: float) -> Figure:
    name = f"guided search, processor time of a proposal {when}, {NUM_KNOBS} knobs"
    samples = tuple(1000 * s for s in seconds)
    return Figure(name, "ms", samples, "<=", 1000 * aim_s, f"Optuna TPE up to {ROWS} rows", 1000 * rival_s)


def amortised(name: str, known: int, count: int, seed: int) -> float:
    """Mean seconds of processor time for each of `count` proposals, being told them included."""
    rng = np.random.default_rng(seed)
    searcher = make_searcher(name, SPACE, OBJECTIVES, seed=seed, costs=COSTS)
    for config in SPACE.sample(rng, known):
        searcher.tell(answer(config, rng))
    start_s = time.process_time()
    drive(searcher, count, rng)
    return (time.process_time() - start_s) / count


def drive(searcher: Searcher, count: int, rng: np.random.Generator) -> None:
    for _ in range(count):
        searcher.tell(answer(searcher.ask(), rng))


def answer(config: SubnetConfig, rng: np.random.Generator) -> Evaluation:
    """A made-up accuracy: what each layer adds, less and less with width, and a little noise."""
    row = SPACE.encode([config])
    top1 = 100 * float(np.mean(np.sqrt(row / 64) * np.linspace(1.6, 0.4, NUM_KNOBS)))
    return Evaluation(config, (float(COSTS.macs(row)[0]), top1 + float(rng.normal(0, 0.05))))
