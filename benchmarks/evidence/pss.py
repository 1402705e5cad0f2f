"""Progressive sub-net search beside US-Net and its controls: every arm from one trained net, at one price.

The price is forward multiply-adds spent on images, counted in forwards of the whole net: those of ranking, of the
path's search with its recalibration, of each net that a training step runs, and of the teacher. One seed on one data
set is one folder with a file for each finished arm, so a broken-off call goes on with the next arm.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from benchmarks.evidence.pss_bench import (
    BATCH,
    BEDS,
    CHANNELS,
    GROUPS,
    LEAST_SHARE,
    NOISE,
    NOISE_FORWARDS,
    PRICES,
    RUNS,
    SEEDS,
    TAYLOR_FORWARDS,
    TEACHER_EPOCHS,
    WARMUP_STEPS,
    Bench,
)
from benchmarks.evidence.pss_page import COMMAND, SHARES, Rows, at_shares, file_of, write_page
from benchmarks.evidence.published import RESULTS, published, restore
from benchmarks.evidence.road import fresh
from search_spaces import InvalidInput, SubnetConfig
from search_spaces.presets import ladders, steps_down
from subnet_search import finetune, make_elastic, train
from subnet_search.batches import Steps
from subnet_search.data import Splits
from subnet_search.measure import top1_percent
from subnet_search.memory import keep_freed_memory
from subnet_search.ranking import (
    Ranker,
    l1_ranking,
    random_ranking,
    taylor_ranking,
)
from subnet_search.record.atomic import write_whole
from subnet_search.settings import (
    ElasticSettings,
    FinetuneSettings,
    TrainSettings,
)
from subnet_search.small_models import resnet20
from subnet_search.training import Among, EachKnob, PlainStep, UniformWidths


def us_net(
    bench: Bench, ranker: Ranker | None, forwards: int, lr: float, distill: str = "fixed teacher"
) -> Rows:
    """US-Net: one multiplier for all widths."""
    bench.reorder(ranker, forwards)
    multipliers = np.arange(0.25, 1.0, 0.005)
    shares = bench.shares([bench.space.uniform(float(r)) for r in multipliers])
    least = float(multipliers[shares >= LEAST_SHARE][0])
    bench.sandwich(UniformWidths(least), lr, distill=distill)
    return bench.measured(_distinct(bench.space.uniform(float(r)) for r in np.linspace(least, 1, 16)))


def progressive(
    bench: Bench,
    ranker: Ranker | None,
    forwards: int,
    lr: float,
    inherit: bool = True,
    distill: str = "fixed teacher",
    trained: int | None = None,
) -> Rows:
    """Warm-up on random sub-nets, the path, joint training of the path (of so many of its elements)."""
    bench.reorder(ranker, forwards)
    bench.sandwich(EachKnob(), lr, WARMUP_STEPS, distill)
    path = thinned(bench, bench.path(), trained)
    if not inherit:
        _forget(bench)
    bench.sandwich(Among(tuple(path)), lr, distill=distill)
    return bench.measured(path)


def thinned(bench: Bench, path: list[SubnetConfig], count: int | None) -> list[SubnetConfig]:
    """So many elements of a path, its ends among them, evenly over the logarithm of multiply-adds; None: all."""
    if count is None:
        return path
    places = np.log(bench.shares(path))
    wanted = np.linspace(places[0], places[-1], count)
    return [path[i] for i in sorted({int(np.abs(places - place).argmin()) for place in wanted})]


def random_path(bench: Bench, ranker: Ranker | None, forwards: int, lr: float) -> Rows:
    """A nested path of drops by chance."""
    bench.reorder(ranker, forwards)
    rng, rungs, path = np.random.default_rng(bench.seed), ladders(bench.space), [bench.space.largest()]
    while below := [
        c for _, c in steps_down(bench.space, path[-1], rungs) if bench.shares([c])[0] >= LEAST_SHARE
    ]:
        path.append(below[rng.integers(len(below))])
    bench.sandwich(Among(tuple(path)), lr)
    return bench.measured(path)


def alone(bench: Bench, lr: float, parts: int) -> Rows:
    """Nets of the widths of a path's sub-nets, each trained by itself from random weights, for a part of the price."""
    bench.reorder(NOISE, 0)  # their widths are a present: none of this is paid
    bench.sandwich(EachKnob(), lr, WARMUP_STEPS)
    path = bench.path()
    shares, rows = bench.shares(path), []
    for share in SHARES:
        config = path[int(np.abs(np.log(shares / share)).argmin())]
        [own] = bench.shares([config]).tolist()
        steps = int(bench.price / parts / own / BATCH)
        part = dataclasses.replace(bench.splits, train=Steps(bench.splits.train, steps, bench.seed))
        settings = FinetuneSettings(epochs=1, lr=0.1, warmup_epochs=0.05, seed=bench.seed)
        net = finetune(fresh(bench.supernet, config, bench.seed), part, settings).net
        search_val, test = (
            top1_percent(net, split) for split in (bench.splits.search_val, bench.splits.test)
        )
        rows.append({"key": config.key, "share": own, "search_val": search_val, "test": test, "steps": steps})
    bench.spent = float(bench.price)
    return rows


def _distinct(configs: Iterable[SubnetConfig]) -> list[SubnetConfig]:
    return list(dict.fromkeys(configs))


def _forget(bench: Bench) -> None:
    """Random weights instead of inherited ones."""
    with torch.random.fork_rng():
        torch.manual_seed(bench.seed + 1)
        for module in bench.supernet.model.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()


@dataclass(frozen=True)
class Arm:
    """One way to come to sub-nets of all sizes."""

    name: str
    kind: str  # "US-Net natural", "US-Net reordered", "PSS", "control"
    elastic: ElasticSettings
    run: Callable[[Bench], Rows]


LR = 0.05
EIGHT: dict[str, Any] = {
    "distill": "in place",
    "trained": 8,
}  # what attempts on another seed had found to be better


def _us(name: str, kind: str, ranker: Ranker | None, forwards: int, distill: str = "fixed teacher") -> Arm:
    return Arm(name, kind, CHANNELS, lambda bench: us_net(bench, ranker, forwards, LR, distill))


def _pss(name: str, kind: str, ranker: Ranker, forwards: int, **options: Any) -> Arm:
    return Arm(name, kind, GROUPS, lambda bench: progressive(bench, ranker, forwards, LR, **options))


ARMS = (
    _us("US-Net, natural order", "US-Net natural", None, 0),
    _us("US-Net, L1 order", "US-Net reordered", l1_ranking, 0),
    _us("US-Net, noise order", "US-Net reordered", NOISE, NOISE_FORWARDS),
    _us("US-Net, L1 order, taught by itself", "US-Net reordered", l1_ranking, 0, "in place"),
    _us("US-Net, noise order, taught by itself", "US-Net reordered", NOISE, NOISE_FORWARDS, "in place"),
    _pss("PSS, noise", "PSS", NOISE, NOISE_FORWARDS),
    _pss("PSS, random ranking", "random ranking", random_ranking, 0),
    _pss("PSS, noise, in-place teacher", "PSS", NOISE, NOISE_FORWARDS, distill="in place"),
    _pss("PSS, random ranking, in-place teacher", "random ranking", random_ranking, 0, distill="in place"),
    _pss("PSS, L1", "PSS", l1_ranking, 0),
    _pss("PSS, L1, in-place teacher", "PSS", l1_ranking, 0, distill="in place"),
    _pss("PSS, Taylor", "PSS", taylor_ranking, TAYLOR_FORWARDS),
    _pss("PSS, noise, in place, eight trained", "PSS", NOISE, NOISE_FORWARDS, **EIGHT),
    _pss("PSS, L1, in place, eight trained", "PSS", l1_ranking, 0, **EIGHT),
    _pss("PSS, random ranking, in place, eight trained", "random ranking", random_ranking, 0, **EIGHT),
    _us("US-Net, natural order, taught by itself", "US-Net natural", None, 0, "in place"),
    _us("US-Net, natural order, labels", "US-Net natural", None, 0, "labels"),
    Arm("random path", "control", GROUPS, lambda bench: random_path(bench, NOISE, NOISE_FORWARDS, LR)),
    _pss("PSS, noise, weights not inherited", "control", NOISE, NOISE_FORWARDS, inherit=False),
    Arm("each net alone, a fifth of the price", "alone", GROUPS, lambda bench: alone(bench, LR, len(SHARES))),
    Arm("each net alone, the full price", "alone", GROUPS, lambda bench: alone(bench, LR, 1)),
)


@functools.cache
def start(bed_name: str, seed: int, price: int) -> tuple[Path, Splits, nn.Module]:
    """The folder of a seed, its data, and the trained network that all its arms begin with."""
    bed, folder = BEDS[bed_name], RUNS / f"{bed_name}-{price}" / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    splits, path = bed.splits(seed), folder / "teacher.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = resnet20(width=8, in_channels=bed.channels)
    if not path.exists():
        supernet = make_elastic(model, torch.zeros(1, bed.channels, bed.size, bed.size))
        train(supernet, splits, PlainStep(), TrainSettings(epochs=TEACHER_EPOCHS, lr=0.1, seed=seed))
        state = {name: tensor.contiguous() for name, tensor in supernet.model.state_dict().items()}
        write_whole(path, safetensors.torch.save(state))
    model.load_state_dict(safetensors.torch.load_file(path))
    found = {name: top1_percent(model, getattr(splits, name)) for name in ("search_val", "test")}
    if not (folder / "teacher.json").exists():
        write_json(folder / "teacher.json", found)
    elif (first := json.loads((folder / "teacher.json").read_text("utf-8"))) != found:
        raise InvalidInput(
            f"all arms of a seed begin with one network; here training gives another one ({found}) than where the "
            f"published arms of {folder} were trained ({first}): publish into an empty page, or train them there"
        )
    return folder, splits, model.eval()


def run_arm(arm: Arm, bed_name: str, seed: int, price: int) -> None:
    """One arm of one seed, unless its file is there."""
    folder, splits, teacher = start(bed_name, seed, price)
    path = folder / f"{file_of(arm.name)}.json"
    if path.exists():
        return
    bench = Bench(BEDS[bed_name], seed, splits, teacher, price, arm.elastic)
    start_s = time.perf_counter()
    rows = arm.run(bench)
    seconds = time.perf_counter() - start_s
    write_json(path, {"rows": rows, "spent": bench.spent, "seconds": seconds, **bench.notes})
    mean = np.mean(at_shares(rows, "test"))
    print(f"{bed_name}, seed {seed}, {arm.name}: {mean:.2f} % in {seconds:.0f} s", flush=True)


def score_in_full(bed_name: str, seed: int, price: int) -> None:
    """What screening loses: the path of the same warmed net with every drop scored in full."""
    folder, splits, teacher = start(bed_name, seed, price)
    path = folder / "scored_in_full.json"
    if path.exists():
        return
    bench = Bench(BEDS[bed_name], seed, splits, teacher, price, GROUPS)
    bench.reorder(NOISE, NOISE_FORWARDS)
    bench.sandwich(EachKnob(), LR, WARMUP_STEPS)
    found: dict[str, Any] = {}
    for name, screened in (("screened", True), ("in full", False)):
        rows = bench.measured(bench.path(screened=screened))
        found[name] = {"images": bench.notes["path"]["images"], "rows": rows}
    write_json(path, found)


def write_json(path: Path, data: Any) -> None:
    write_whole(path, (json.dumps(data, indent=1) + "\n").encode())


def go_on(prices: Mapping[str, int]) -> None:
    """Makes files of the published arms of these prices; the networks they begin with are trained again."""
    found = published("pss")
    restore(
        (RUNS / f"{name}-{prices[name]}" / seed / f"{stem}.json", content)
        for name, seeds in found.get("beds", {}).items()
        if found["prices"][name] == prices[name]
        for seed, files in seeds.items()
        for stem, content in files.items()
    )


def publish(prices: Mapping[str, int]) -> None:
    """Makes the page from all arms that are there, at one price for each bed."""
    beds: dict[str, Any] = {}
    for name in BEDS:
        for folder in sorted((RUNS / f"{name}-{prices[name]}").glob("*")):
            if (folder / "teacher.json").exists():
                found = {
                    path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))
                }
                beds.setdefault(name, {})[folder.name] = found
    titles = {name: bed.title for name, bed in BEDS.items()}
    write_page(prices, titles, [(arm.name, arm.kind) for arm in ARMS], beds)


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND)
    parser.add_argument("bed", nargs="?", choices=tuple(BEDS), help="default: all")
    parser.add_argument("seeds", nargs="*", type=int, help=f"default: {', '.join(map(str, SEEDS))}")
    default = ", ".join(f"{price:,} for {name}" for name, price in PRICES.items())
    parser.add_argument(
        "--price", type=int, help=f"of an arm, in forwards of the whole net; default: {default}"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    beds, seeds = [arguments.bed] if arguments.bed else list(BEDS), arguments.seeds or SEEDS
    prices = PRICES if arguments.price is None else dict.fromkeys(BEDS, arguments.price)
    go_on(prices)
    for name, seed in itertools.product(beds, seeds):
        score_in_full(name, seed, prices[name])
    for arm, name, seed in itertools.product(ARMS, beds, seeds):  # the arms that matter most come first
        run_arm(arm, name, seed, prices[name])
        publish(prices)
    publish(prices)
    print((RESULTS / "pss.md").read_text("utf-8"))


if __name__ == "__main__":
    main()
