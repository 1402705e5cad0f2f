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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from benchmarks.evidence.own_network import decoded
from benchmarks.evidence.pss_page import COMMAND, RESULTS, SHARES, Rows, at_shares, file_of, write_page
from benchmarks.evidence.road import data_folder, fresh
from search_spaces import SubnetConfig
from search_spaces.presets import ladders, steps_down
from subnet_search import finetune, make_elastic, recalibrate, train
from subnet_search.batches import Steps, first_images
from subnet_search.data import Batch, Splits, load_splits
from subnet_search.measure import top1_percent
from subnet_search.measure.scoring import SharedScorer
from subnet_search.memory import keep_freed_memory
from subnet_search.ranking import (
    NoiseLevels,
    Ranker,
    l1_ranking,
    noise_levels,
    noise_ranking,
    predicted_increase,
    random_ranking,
    rank,
    taylor_ranking,
)
from subnet_search.record.atomic import write_whole
from subnet_search.searchers.progressive import walk_down
from subnet_search.settings import (
    DataSettings,
    ElasticSettings,
    FinetuneSettings,
    ModelSettings,
    ProgressiveSettings,
    TrainSettings,
)
from subnet_search.small_models import resnet20
from subnet_search.training import Among, EachKnob, PlainStep, SandwichStep, UniformWidths
from subnet_search.training.sampling import Sampling

RUNS = Path("runs") / "pss"
LEAST_SHARE = 0.12  # of the multiply-adds, for the smallest sub-net of every arm
BATCH, RANK_IMAGES, NOISE_STEPS, STATISTICS_IMAGES = 128, 1024, 100, 2000
WARMUP_STEPS, NUM_RANDOM = 60, 2
PRICE = 740_000  # forwards of the whole net
TEACHER_EPOCHS = 12
SEEDS = (50, 51, 52)
GROUPS = ElasticSettings(groups_per_layer=4, min_share=0.25)
CHANNELS = ElasticSettings(step=1, min_share=0.25)  # uniform widths channel by channel
MEANS = {3: (0.485, 0.456, 0.406), 1: (0.286,)}
STDS = {3: (0.229, 0.224, 0.225), 1: (0.353,)}


@dataclass(frozen=True)
class Bed:
    """Data on which all arms are compared.

    Attributes:
        title: for the page.
        source: makes the .npz file, where it is not there yet, and says where.
        channels: of an image.
        size: its side in pixels.
        augment: of training images.
    """

    title: str
    source: Callable[[], Path]
    channels: int
    size: int
    augment: str

    def splits(self, seed: int) -> Splits:
        settings = DataSettings(
            source=f"npz:{self.source()}",
            batch_size=BATCH,
            search_val_share=0.1,
            gate_share=0.0,
            seed=seed,
            mean=MEANS[self.channels],
            std=STDS[self.channels],
            augment=self.augment,
        )
        return load_splits(settings, ModelSettings(name="subnet_search.small_models:resnet20"))


def shrunk() -> Path:
    """The JPEG copy of CIFAR-10 at 16 pixels: each is the mean of four."""
    path = RUNS.parent / "cifar10_jpeg_16px.npz"
    if not path.exists():
        with np.load(decoded(), allow_pickle=False) as file:
            arrays = dict(file)
        for part in ("train", "test"):
            wide = arrays[f"x_{part}"].astype(np.uint16)
            four = (wide[:, top::2, left::2] for top in (0, 1) for left in (0, 1))
            arrays[f"x_{part}"] = ((sum(four) + 2) // 4).astype(np.uint8)
        unfinished = path.with_suffix(".part.npz")
        np.savez(unfinished, allow_pickle=False, **arrays)
        unfinished.replace(path)
    return path.resolve()


BEDS = {
    "cifar10": Bed("CIFAR-10, JPEG copy at 16 px", shrunk, 3, 16, "crop+flip"),
    "fashion": Bed(
        "Fashion-MNIST, 28 px",
        lambda: data_folder() / "fashion-mnist" / "fashion_mnist.npz",
        1,
        28,
        "flip",
    ),
}


@dataclass
class Bench:
    """One arm's supernet, and what it has spent so far, in forwards of the whole net."""

    bed: Bed
    seed: int
    splits: Splits
    teacher: nn.Module
    price: int
    elastic: ElasticSettings
    levels: NoiseLevels | None = None
    spent: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        example = torch.zeros(1, self.bed.channels, self.bed.size, self.bed.size)
        self.supernet = make_elastic(self.teacher, example, self.elastic)
        self.space = self.supernet.space

    def shares(self, configs: Sequence[SubnetConfig]) -> np.ndarray:
        """Multiply-adds of sub-nets, the whole net's being 1."""
        macs = self.supernet.costs.macs(self.space.encode([self.space.largest(), *configs]))
        return np.asarray(macs[1:] / macs[0])

    def images(self, count: int) -> list[Batch]:
        """The first training images, without augmentation."""
        assert self.splits.calibration is not None
        return first_images(self.splits.calibration, count, self.seed)

    def reorder(self, ranker: Ranker | None, forwards: int) -> None:
        """Puts channels in ranked order; noise levels are kept, as they also tell which drops to look at."""
        if ranker is NOISE:
            levels = noise_levels(self.supernet, self.images(RANK_IMAGES), steps=NOISE_STEPS)
            self.levels = levels.reordered(ranking := levels.ranking())
            self.supernet.reorder(ranking)
        elif ranker is not None:
            self.supernet.reorder(rank(self.supernet, self.images(RANK_IMAGES), ranker))
        self.spent += forwards

    def sandwich(
        self, sampling: Sampling, lr: float, steps: int | None = None, distill: str = "fixed teacher"
    ) -> None:
        """Trains by the sandwich rule, for so many steps or until the price is spent."""
        fixed = distill == "fixed teacher"
        drawn = sampling.draw(self.space, np.random.default_rng(0), 500)
        smallest = self.shares([sampling.smallest(self.space)])[0]
        step_price = BATCH * (1 + smallest + NUM_RANDOM * self.shares(drawn).mean() + fixed)
        steps = int((self.price - self.spent) / step_price) if steps is None else steps
        step = SandwichStep(
            NUM_RANDOM, distill != "labels", self.teacher if fixed else None, sampling=sampling
        )
        part = dataclasses.replace(self.splits, train=Steps(self.splits.train, steps, self.seed))
        settings = TrainSettings(epochs=1, lr=lr, warmup_epochs=0.05, seed=self.seed)
        train(self.supernet, part, step, settings)
        self.supernet.eval()
        self.spent += steps * step_price
        self.notes.setdefault("steps", []).append(steps)

    def measured(self, configs: Sequence[SubnetConfig]) -> list[dict[str, Any]]:
        """Top-1 on search-validation and test of the sub-nets around each of `SHARES` and of the largest."""
        images, rows, shares = self.images(STATISTICS_IMAGES), [], self.shares(configs)
        order = np.argsort(shares)
        above = np.searchsorted(shares[order], SHARES)
        needed = order[
            sorted({*np.maximum(above - 1, 0), *np.minimum(above, len(order) - 1), len(order) - 1})
        ]
        for config, share in [(configs[i], float(shares[i])) for i in needed]:
            with self.supernet.subnet(config, recalibrate(self.supernet, config, images)):
                search_val = top1_percent(self.supernet, self.splits.search_val)
                test = top1_percent(self.supernet, self.splits.test)
            rows.append({"key": config.key, "share": share, "search_val": search_val, "test": test})
        return rows

    def path(self, *, screened: bool = True) -> list[SubnetConfig]:
        """The nested path, its price and its own scores noted; each drop scored in full if not `screened`."""
        settings = ProgressiveSettings(seed=self.seed)
        scorer, start_s = SharedScorer(self.supernet, self.splits, settings), time.perf_counter()
        levels = self.levels
        predict = None if levels is None else functools.partial(predicted_increase, levels, self.supernet)
        found = walk_down(
            self.space,
            self.supernet.costs,
            ladders(self.space),
            scorer,
            smallest_macs_share=LEAST_SHARE,
            screen=settings.screen if screened else None,
            finalists=settings.finalists,
            predict=predict,
        )
        full_macs = self.supernet.costs.macs(self.space.encode([self.space.largest()]))[0]
        self.spent += scorer.macs / full_macs
        configs = [element.config for element in found]
        self.notes["path"] = {
            "images": scorer.images,
            "forwards": scorer.macs / full_macs,
            "seconds": time.perf_counter() - start_s,
            "elements": [
                {"share": share, "top1_percent": e.score.top1_percent, "dropped": e.dropped}
                for e, share in zip(found, self.shares(configs).tolist(), strict=True)
            ],
        }
        return configs


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


def progressive(bench: Bench, ranker: Ranker | None, forwards: int, lr: float, inherit: bool = True) -> Rows:
    """Warm-up on random sub-nets, the path, joint training of the path."""
    bench.reorder(ranker, forwards)
    bench.sandwich(EachKnob(), lr, WARMUP_STEPS)
    path = bench.path()
    if not inherit:
        _forget(bench)
    bench.sandwich(Among(tuple(path)), lr)
    return bench.measured(path)


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
NOISE = functools.partial(noise_ranking, steps=NOISE_STEPS)
NOISE_FORWARDS, TAYLOR_FORWARDS = NOISE_STEPS * BATCH, RANK_IMAGES


def _us(name: str, kind: str, ranker: Ranker | None, forwards: int, distill: str = "fixed teacher") -> Arm:
    return Arm(name, kind, CHANNELS, lambda bench: us_net(bench, ranker, forwards, LR, distill))


def _pss(name: str, kind: str, ranker: Ranker, forwards: int, **options: bool) -> Arm:
    return Arm(name, kind, GROUPS, lambda bench: progressive(bench, ranker, forwards, LR, **options))


ARMS = (
    _us("US-Net, natural order", "US-Net natural", None, 0),
    _us("US-Net, L1 order", "US-Net reordered", l1_ranking, 0),
    _us("US-Net, noise order", "US-Net reordered", NOISE, NOISE_FORWARDS),
    _pss("PSS, noise", "PSS", NOISE, NOISE_FORWARDS),
    _pss("PSS, random ranking", "random ranking", random_ranking, 0),
    _pss("PSS, L1", "other rankings", l1_ranking, 0),
    _pss("PSS, Taylor", "other rankings", taylor_ranking, TAYLOR_FORWARDS),
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
    if not (folder / "teacher.json").exists():
        found = {name: top1_percent(model, getattr(splits, name)) for name in ("search_val", "test")}
        write_json(folder / "teacher.json", found)
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


def publish(price: int) -> None:
    """Makes the page from all arms that are there."""
    beds: dict[str, Any] = {}
    for name in BEDS:
        for folder in sorted((RUNS / f"{name}-{price}").glob("*")):
            if (folder / "teacher.json").exists():
                found = {
                    path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))
                }
                beds.setdefault(name, {})[folder.name] = found
    write_page(
        price, {name: bed.title for name, bed in BEDS.items()}, [(arm.name, arm.kind) for arm in ARMS], beds
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND)
    parser.add_argument("bed", nargs="?", choices=tuple(BEDS), help="default: all")
    parser.add_argument("seeds", nargs="*", type=int, help=f"default: {', '.join(map(str, SEEDS))}")
    parser.add_argument("--price", type=int, default=PRICE, help="of an arm, in forwards of the whole net")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    beds, seeds = [arguments.bed] if arguments.bed else list(BEDS), arguments.seeds or SEEDS
    for name, seed in itertools.product(beds, seeds):
        score_in_full(name, seed, arguments.price)
    for arm, name, seed in itertools.product(ARMS, beds, seeds):  # the arms that matter most come first
        run_arm(arm, name, seed, arguments.price)
        publish(arguments.price)
    publish(arguments.price)
    print((RESULTS / "pss.md").read_text("utf-8"))


if __name__ == "__main__":
    main()
