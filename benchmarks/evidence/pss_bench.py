"""What each arm of `benchmarks.evidence.pss` works with: data, a supernet, and an account of what was spent."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.evidence.own_network import decoded
from benchmarks.evidence.pss_page import SHARES
from benchmarks.evidence.road import data_folder
from search_spaces import SubnetConfig
from search_spaces.presets import ladders
from subnet_search import make_elastic, recalibrate, train
from subnet_search.batches import Steps, first_images
from subnet_search.data import Batch, Splits, load_splits
from subnet_search.elastic import Supernet
from subnet_search.measure import top1_percent
from subnet_search.measure.scoring import SharedScorer
from subnet_search.ranking import (
    NoiseLevels,
    Ranker,
    noise_levels,
    noise_ranking,
    predicted_increase,
    rank,
)
from subnet_search.searchers.progressive import Criterion, walk_down
from subnet_search.settings import (
    DataSettings,
    ElasticSettings,
    ModelSettings,
    ProgressiveSettings,
    TrainSettings,
)
from subnet_search.training import SandwichStep, Step
from subnet_search.training.sampling import Sampling

RUNS = Path("runs") / "pss"
LEAST_SHARE = 0.12  # of the multiply-adds, for the smallest sub-net of every arm
BATCH, RANK_IMAGES, NOISE_STEPS, STATISTICS_IMAGES = 128, 1024, 100, 2000
WARMUP_STEPS, NUM_RANDOM = 60, 2
PRICES = {"cifar10": 740_000, "fashion": 185_000}  # of an arm by bed, in forwards of the whole net
TEACHER_EPOCHS = 12
SEEDS = (50, 51, 52)
GROUPS = ElasticSettings(groups_per_layer=4, min_share=0.25)
CHANNELS = ElasticSettings(step=1, min_share=0.25)  # uniform widths channel by channel
MEANS = {3: (0.485, 0.456, 0.406), 1: (0.286,)}
STDS = {3: (0.229, 0.224, 0.225), 1: (0.353,)}


NOISE = functools.partial(noise_ranking, steps=NOISE_STEPS)
NOISE_FORWARDS, TAYLOR_FORWARDS = NOISE_STEPS * BATCH, RANK_IMAGES


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
class Averaging:
    """A step of training, and the running average of the weights that it sees."""

    step: Step
    decay: float
    weights: list[Tensor] | None = None

    def __call__(self, supernet: Supernet, batch: Batch, rng: np.random.Generator) -> float:
        now = [p.detach() for p in supernet.parameters()]
        if self.weights is None:
            self.weights = [p.clone() for p in now]
        torch._foreach_lerp_(self.weights, now, 1 - self.decay)
        return self.step(supernet, batch, rng)

    def take_over(self, supernet: Supernet) -> None:
        """The average becomes the weights."""
        assert self.weights is not None
        with torch.no_grad():
            for parameter, mean in zip(supernet.parameters(), self.weights, strict=True):
                parameter.copy_(mean)


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
        self,
        sampling: Sampling,
        lr: float,
        steps: int | None = None,
        distill: str = "fixed teacher",
        num_random: int = NUM_RANDOM,
        anchor: float = 0.0,
        emphasis: float = 1.0,
        averaged: float | None = None,
    ) -> None:
        """Trains by the sandwich rule, for so many steps or until the price is spent.

        With `averaged`, the weights are in the end their own running average, each step's share being 1 - averaged.
        """
        fixed = distill == "fixed teacher"
        drawn = sampling.draw(self.space, np.random.default_rng(0), 500)
        smallest = self.shares([sampling.smallest(self.space)])[0]
        step_price = BATCH * (1 + smallest + num_random * self.shares(drawn).mean() + fixed)
        steps = int((self.price - self.spent) / step_price) if steps is None else steps
        step: Step = SandwichStep(
            num_random, distill != "labels", self.teacher if fixed else None, sampling, anchor, emphasis
        )
        average = None if averaged is None else Averaging(step, averaged)
        part = dataclasses.replace(self.splits, train=Steps(self.splits.train, steps, self.seed))
        settings = TrainSettings(epochs=1, lr=lr, warmup_epochs=0.05, seed=self.seed)
        train(self.supernet, part, average or step, settings)
        if average is not None:
            average.take_over(self.supernet)
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

    def path(self, *, screened: bool = True, criterion: Criterion = "loss_per_mac") -> list[SubnetConfig]:
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
            criterion=criterion,
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
