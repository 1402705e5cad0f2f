"""Truly evaluated sub-nets per second, against activating, recalibrating on 2,000 images and a full pass.

The trained supernet is that of `benchmarks.evidence.fashion_mnist`, which is trained first if it is not there. The
straightforward way runs in a process of its own, whose memory is treated as Python leaves it; both ways look at each
sub-net in turn.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau

from benchmarks.evidence.fashion_mnist import recipe_of
from benchmarks.figure import Figure
from search_spaces import SubnetConfig
from subnet_search.data import Batch
from subnet_search.elastic import recalibrate
from subnet_search.elastic.extraction import cut_out
from subnet_search.elastic.folding import Fold, find_folds, folded
from subnet_search.measure import describe_device, make_evaluator
from subnet_search.memory import in_order, keep_freed_memory
from subnet_search.pipeline import advance, begin
from subnet_search.progress import progress
from subnet_search.record import open_run
from subnet_search.settings import EvaluateSettings
from subnet_search.workbench import Workbench

SEED, NUM_NETS, NUM_TIMED = 20, 100, 20  # all nets are ranked, every fifth is also timed step by step
STRAIGHT_IMAGES = 2000
TAU_MARGIN = 0.01
RUNS, RESULTS = Path("runs"), Path(__file__).parent.parent / "reports" / "results"
HEAD = """# Evaluation speed

How many sub-nets of a trained supernet (Fashion-MNIST, ResNet-20 of width 8, 28 px, 6,000 search-validation images,
batch 128) are truly evaluated in a second. The straightforward way activates the sub-net in the supernet, recalibrates
its batch norms on 2,000 images and passes all search-validation images through it. 100 sub-nets, evenly spread over
the logarithm of their MACs, in random order, each evaluated in all ways one after the other; every fifth for the
ladder. The last step is the product's evaluator; the steps' speed-ups multiply.

Made by `python -m benchmarks evaluation`.

| way | nets per second | against straightforward | this step |
|---|---|---|---|
"""


@dataclass(frozen=True)
class Way:
    """One way to evaluate; the fields are the ingredients in the order in which they are added."""

    name: str
    keep_memory: bool = False
    inference_mode: bool = False
    images_in_memory: bool = False
    calibration_images: int = STRAIGHT_IMAGES
    channels_last: bool = False
    bf16: bool = False
    fold: bool = False
    share_prefixes: bool = False
    extract: bool = False
    calibration_seed: int = 0


STRAIGHT = Way("straightforward")
ANOTHER = replace(STRAIGHT, name="straightforward, other calibration images", calibration_seed=1)
LADDER = (
    STRAIGHT,
    kept := replace(STRAIGHT, name="+ freed memory kept", keep_memory=True),
    inference := replace(kept, name="+ inference mode", inference_mode=True),
    in_memory := replace(inference, name="+ images prepared once", images_in_memory=True),
    fewer := replace(
        in_memory,
        name="+ calibration images: {} of 2,000",
        calibration_images=EvaluateSettings().calibration_images,
    ),
    last := replace(fewer, name="+ channels last", channels_last=True),
    rounded := replace(last, name="+ bf16", bf16=True),
    folding := replace(rounded, name="+ batch norms folded", fold=True),
    OURS := replace(
        folding,
        name="+ shared prefixes, calibration in bf16 too (the product's evaluator)",
        share_prefixes=True,
    ),
)
EXTRACTED = replace(rounded, name="up to bf16, extracted instead of active", extract=True)


class Evaluations:
    """One process that evaluates sub-nets in any way, its allocator as Python leaves it or keeping freed memory."""

    def __init__(self, run: Path, keep_memory: bool) -> None:
        self._here, there = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_serve, args=(there, run, keep_memory), daemon=True)
        self._process.start()
        there.close()

    def __call__(self, way: Way, config: SubnetConfig) -> tuple[float, float]:
        """Seconds, and top-1 on search-validation in percent."""
        self._here.send((way, config))
        answer: tuple[float, float] = self._here.recv()
        return answer


def _serve(pipe: Connection, folder: Path, keep_memory: bool) -> None:
    torch.set_num_threads(1)
    if keep_memory:
        keep_freed_memory()
    run = open_run(folder, write=False)
    bench = Workbench(run, recipe_of(SEED), print)
    ways: dict[Way, Callable[[SubnetConfig], float]] = {}
    while True:
        try:
            way, config = pipe.recv()
        except EOFError:
            return
        if way not in ways:
            ways[way] = _evaluator(bench, way)
        start_s = time.perf_counter()
        accuracy = ways[way](config)
        pipe.send((time.perf_counter() - start_s, accuracy))


def _evaluator(bench: Workbench, way: Way) -> Callable[[SubnetConfig], float]:
    if way.share_prefixes:
        settings = EvaluateSettings(calibration_images=way.calibration_images)
        evaluator = make_evaluator(bench.supernet, bench.splits, ("top1_percent",), settings)
        return lambda config: evaluator(config).values[0]
    skipped = way.calibration_seed * STRAIGHT_IMAGES
    images = bench.calibration(skipped + way.calibration_images)
    inputs, targets = (torch.cat(parts)[skipped:] for parts in zip(*images, strict=True))
    size = len(images[0][0])
    calibration = list(zip(inputs.split(size), targets.split(size), strict=True))
    search_val: Iterable[Batch] = bench.splits.search_val
    if way.images_in_memory:
        search_val = [(in_order(x, way.channels_last), y) for x, y in search_val]
        calibration = [(in_order(x, way.channels_last), y) for x, y in calibration]
    folds = find_folds(bench.supernet.model) if way.fold else []
    return partial(_one_by_one, bench, way, folds, calibration, search_val)


def _one_by_one(
    bench: Workbench,
    way: Way,
    folds: list[Fold],
    calibration: list[Batch],
    search_val: Iterable[Batch],
    config: SubnetConfig,
) -> float:
    supernet = bench.supernet
    statistics = recalibrate(supernet, config, calibration)
    mode = torch.inference_mode if way.inference_mode else torch.no_grad
    dtype = torch.bfloat16 if way.bf16 else None
    rounding = torch.autocast("cpu", torch.bfloat16, way.bf16)
    with supernet.subnet(config, statistics), mode(), rounding, folded(folds, dtype):
        net = cut_out(supernet, config, statistics) if way.extract else supernet
        found = [(net(images).argmax(dim=1) == labels) for images, labels in search_val]
    return 100 * float(torch.cat(found).float().mean())


def spread_over_macs(bench: Workbench, count: int) -> list[SubnetConfig]:
    """Random sub-nets, evenly spread over the logarithm of their MACs, in random order."""
    rng = np.random.default_rng(0)
    drawn = list(dict.fromkeys(bench.space.sample(rng, 20_000)))
    macs = np.log(bench.costs.macs(bench.space.encode(drawn)))
    chosen: dict[int, None] = {}
    for place in np.linspace(macs.min(), macs.max(), count):
        by_distance = np.argsort(np.abs(macs - place), kind="stable")
        chosen[next(int(i) for i in by_distance if int(i) not in chosen)] = None
    return [drawn[i] for i in rng.permutation(list(chosen))]


def measure() -> list[Figure]:
    torch.set_num_threads(1)
    recipe = recipe_of(SEED)
    folder = RUNS / recipe.name
    if not (folder / "supernet.safetensors").exists():
        with begin(recipe, RUNS) as run:
            advance(run, "train", say=print)
    configs = spread_over_macs(Workbench(open_run(folder, write=False), recipe, print), NUM_NETS)
    processes = {keep: Evaluations(folder, keep) for keep in (False, True)}
    counts = [replace(OURS, calibration_images=n) for n in (128, 256, 512, 1024)]
    ways = [*LADDER, EXTRACTED, ANOTHER, *(way for way in counts if way != OURS)]
    seconds: dict[Way, list[float]] = {way: [] for way in ways}
    accuracy: dict[Way, list[float]] = {way: [] for way in ways}
    for way in ways:
        processes[way.keep_memory](way, configs[0])  # warm-up: what is prepared once
    order = np.random.default_rng(1)
    for place, config in enumerate(progress(configs, "evaluation", "subnet")):
        for way in [ways[i] for i in order.permutation(len(ways))]:
            if way in (STRAIGHT, OURS, ANOTHER, *counts) or place % (NUM_NETS // NUM_TIMED) == 0:
                took_s, found = processes[way.keep_memory](way, config)
                seconds[way].append(took_s)
                accuracy[way].append(found)
    return _figures(seconds, accuracy, counts)


def _figures(
    seconds: dict[Way, list[float]], accuracy: dict[Way, list[float]], counts: list[Way]
) -> list[Figure]:
    blocks = [slice(i, i + NUM_NETS // 5) for i in range(0, NUM_NETS, NUM_NETS // 5)]
    ratios = [sum(seconds[STRAIGHT][b]) / sum(seconds[OURS][b]) for b in blocks]
    taus = {way: _tau(accuracy[way], accuracy) for way in (OURS, *counts)}
    noise = float(kendalltau(accuracy[STRAIGHT], accuracy[ANOTHER]).statistic)
    found = {
        "command": "python -m benchmarks evaluation",
        "date": date.today().isoformat(),
        "machine": describe_device(),
        "nets": NUM_NETS,
        "tau_of_two_straightforward_runs": noise,
        "ladder": [_step(way, seconds) for way in LADDER],
        "not_used": [_step(way, seconds) for way in (EXTRACTED,)],
        "calibration": [
            {"images": way.calibration_images, "tau": taus[way], "nets_per_second": _rate(seconds[way])}
            for way in sorted(counts, key=lambda way: way.calibration_images)
        ],
        "seconds": {way.name: values for way, values in seconds.items() if way in (STRAIGHT, OURS)},
        "top1_percent": {way.name: accuracy[way] for way in (STRAIGHT, ANOTHER, OURS)},
    }
    (RESULTS / "evaluation.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    (RESULTS / "evaluation.md").write_text(_page(found), "utf-8")
    straight = f"straightforward, {_rate(seconds[STRAIGHT]):.2f} nets/s"
    other = "two straightforward runs with other calibration images"
    tau = (taus[OURS],)
    return [
        Figure(
            "evaluated sub-nets per second / straightforward", "x", tuple(ratios), ">=", 3.0, straight, 1.0
        ),
        Figure("Kendall tau with straightforward runs", "tau", tau, ">=", noise - TAU_MARGIN, other, noise),
    ]


def _tau(mine: list[float], accuracy: dict[Way, list[float]]) -> float:
    """Mean of Kendall's tau with each of the two straightforward runs."""
    return float(np.mean([kendalltau(mine, accuracy[way]).statistic for way in (STRAIGHT, ANOTHER)]))


def _rate(seconds: list[float]) -> float:
    return len(seconds) / sum(seconds)


def _step(way: Way, seconds: dict[Way, list[float]]) -> dict[str, Any]:
    """A step of the ladder on the nets that all steps looked at."""
    stride = NUM_NETS // NUM_TIMED
    took, straight = (s if len(s) < NUM_NETS else s[::stride] for s in (seconds[way], seconds[STRAIGHT]))
    return {
        "name": way.name.format(way.calibration_images),
        "nets_per_second": _rate(took),
        "speed_up": sum(straight) / sum(took),
    }


def _together(seconds: dict[str, list[float]]) -> float:
    return sum(seconds[STRAIGHT.name]) / sum(seconds[OURS.name])


def _page(found: dict[str, Any]) -> str:
    rows, before = [], 1.0
    for step in found["ladder"]:
        rows.append(
            f"| {step['name']} | {step['nets_per_second']:.2f} | {step['speed_up']:.2f} x "
            f"| {step['speed_up'] / before:.2f} x |"
        )
        before = step["speed_up"]
    tried = [
        f"Tried and not used: {step['name']}, {step['nets_per_second']:.2f} nets per second."
        for step in found["not_used"]
    ]
    counts = [
        f"| {c['images']} | {c['tau']:.4f} | {c['nets_per_second']:.2f} |" for c in found["calibration"]
    ]
    machine = found["machine"]
    return HEAD + "\n".join(
        [
            *rows,
            "",
            f"Over all {found['nets']} sub-nets together {_together(found['seconds']):.2f} x.",
            *tried,
            "",
            "Kendall tau of two straightforward runs with different calibration images: "
            f"{found['tau_of_two_straightforward_runs']:.4f}.",
            "The product's evaluator, mean of tau with either, by its number of calibration images:",
            "",
            "| calibration images | tau | nets per second |",
            "|---|---|---|",
            *counts,
            "",
            f"{machine['cpu']}, one thread, torch {machine['torch']}, {found['date']}.",
            "",
        ]
    )
