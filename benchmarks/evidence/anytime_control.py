"""The load generator of `benchmarks.evidence.anytime`: requests at a fixed rate while other work comes and goes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.evidence.anytime_bench import Place, seeded, top1s
from subnet_search import make_elastic, recalibrate, save_dynamic, train
from subnet_search.batches import Steps
from subnet_search.dynamic import ControlSettings, DynamicNet
from subnet_search.settings import ElasticSettings, ModelSettings, TrainSettings
from subnet_search.small_models import SmallResNet
from subnet_search.training import SandwichStep

BLOCKS, WIDTH, TRAINING_SHARE = (1, 1, 1), 16, 0.5  # of the steps: a sandwich step runs four nets
SHARES = (0.25, 0.4, 0.55, 0.75, 1.0)  # of the widths
PHASES = (0, 3, 0, 6, 0)  # other processes that compute
PHASE_SECONDS, PERIOD_SECONDS, BUDGET_SHARE = 40.0, 0.1, 1.5  # the budget, of the largest at rest
BATCH = 128  # so that a request takes longer than the turns of a system's scheduler
MODEL = ModelSettings(
    name="subnet_search.small_models:SmallResNet",
    options={"blocks": list(BLOCKS), "width": WIDTH, "in_channels": 1},
)


def controlled(place: Place) -> dict[str, Any]:
    """Latency and accuracy of the same requests with and without control, and from the smallest sub-net alone."""
    found: dict[str, Any] = {"phases": PHASES, "phase_seconds": PHASE_SECONDS}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.safetensors"
        found["subnets"] = written(place, file)
        images = torch.cat([x for x, _ in place.splits.test])
        labels = torch.cat([y for _, y in place.splits.test])
        rest = DynamicNet.load(file)
        batch = images[:BATCH]
        rest_ms = [_rest_ms(net, batch) for net in rest.nets]  # of such requests
        by_key = {rung.member.key: ms for rung, ms in zip(rest.rungs, rest_ms, strict=True)}
        found["rest_ms"] = rest_ms
        found["budget_ms"] = BUDGET_SHARE * rest_ms[-1]
        found["bytes"] = {"shared": rest.shared_bytes, "own": rest.own_bytes, "file": file.stat().st_size}
        found["switch_us"] = _switch_us(rest)
        latencies = [by_key.get(one["key"], 1e9) for one in found["subnets"]]
        for name, closed, budget_ms in (
            ("with control", True, found["budget_ms"]),
            ("without control", False, found["budget_ms"]),
            ("smallest", False, min(latencies)),
        ):
            net = DynamicNet.load(file, latencies_ms=latencies, settings=ControlSettings(closed_loop=closed))
            net.set_budget(latency_ms=budget_ms)
            found[name] = served(net, images, labels, place.seed)
            found[name]["switches"] = net.state.switches
    return found


def written(place: Place, file: Path) -> list[dict[str, Any]]:
    """Trains a small supernet and writes some of its sub-nets."""
    seeded(place, "control")
    model = SmallResNet(BLOCKS, WIDTH, 10, in_channels=1)
    steps = round(TRAINING_SHARE * place.steps)
    supernet = make_elastic(model, place.example, ElasticSettings(min_share=0.2, step=1))
    part = dataclasses.replace(place.splits, train=Steps(place.splits.train, steps, place.seed))
    train(
        supernet, part, SandwichStep(), TrainSettings(epochs=1, lr=0.1, warmup_epochs=0.05, seed=place.seed)
    )
    supernet.eval()
    configs = [supernet.space.uniform(share) for share in SHARES]
    pairs = [(config, recalibrate(supernet, config, place.images())) for config in configs]
    rows: list[dict[str, Any]] = []
    for config, statistics in pairs:
        with supernet.subnet(config, statistics):
            [top1] = top1s(lambda x: [supernet(x)], place.splits.search_val)
        macs = int(supernet.costs.macs(supernet.space.encode([config]))[0])
        rows.append({"key": config.key, "macs": macs, "search_val": top1})
    save_dynamic(file, supernet, pairs, model=MODEL, top1_percent=[row["search_val"] for row in rows])
    return rows


@torch.no_grad()
def _rest_ms(net: torch.nn.Module, batch: Tensor) -> float:
    times = []
    for _ in range(40):
        start_s = time.perf_counter()
        net(batch)
        times.append(1e3 * (time.perf_counter() - start_s))
    return float(np.median(times))


def _switch_us(net: DynamicNet) -> float:
    """Microseconds of one change of the budget to another sub-net."""
    budgets = [1.01 * rung.latency_ms for rung in net.rungs]
    start_s = time.perf_counter()
    for count in range(2000):
        net.set_budget(latency_ms=budgets[count % len(budgets)])
    return 1e6 * (time.perf_counter() - start_s) / 2000


def served(net: DynamicNet, images: Tensor, labels: Tensor, seed: int) -> dict[str, Any]:
    """A request every `PERIOD_SECONDS` (or when the last one is done) through all phases."""
    order = np.random.default_rng(seed).permutation(len(images))
    rows: list[tuple[float, float, int]] = []
    begin_s, sent = time.perf_counter(), 0
    for phase, burners in enumerate(PHASES):
        with burning(burners):
            while (now_s := time.perf_counter() - begin_s) < (phase + 1) * PHASE_SECONDS:
                picked = torch.from_numpy(order[np.arange(sent, sent + BATCH) % len(order)])
                x, start_s = images[picked], time.perf_counter()
                answer = net(x)
                taken_ms = 1e3 * (time.perf_counter() - start_s)
                right = int((answer.argmax(1) == labels[picked]).sum())
                rows.append((now_s, taken_ms, right))
                sent += BATCH
                time.sleep(max(0.0, PERIOD_SECONDS - (time.perf_counter() - start_s)))
    return {
        "seconds": [round(row[0], 3) for row in rows],
        "latency_ms": [round(row[1], 3) for row in rows],
        "right": [row[2] for row in rows],
        "batch": BATCH,
    }


@contextmanager
def burning(count: int) -> Iterator[None]:
    """Other processes that compute without end."""
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_burn, daemon=True) for _ in range(count)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.terminate()
        for other in others:
            other.join()


def _burn() -> None:
    a, parent = np.random.default_rng(0).random((200, 200)), os.getppid()
    while os.getppid() == parent:  # whoever started it may be killed
        a = a @ a
        a /= np.abs(a).max()
