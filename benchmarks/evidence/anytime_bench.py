"""The arms of `benchmarks.evidence.anytime`: what each one trains, and what it measures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from benchmarks.evidence.pss_bench import BEDS, Bed
from benchmarks.evidence.road import fresh
from search_spaces import SubnetConfig
from subnet_search import make_elastic, recalibrate
from subnet_search.batches import Steps, first_images
from subnet_search.data import Batch, Splits
from subnet_search.dynamic.anytime import branch_loss, time_steps
from subnet_search.dynamic.taxonomy import LabelTree, label_tree, taxonomy_loss
from subnet_search.elastic import Supernet
from subnet_search.elastic.nested_branches import NestedResNeXt
from subnet_search.elastic.sub_paths import find_skip_paths
from subnet_search.measure.counter import count_macs
from subnet_search.seeding import derive_seed, seed_everything
from subnet_search.settings import ElasticSettings, TrainSettings
from subnet_search.small_models import BasicBlock, SmallResNet, triangular_resnet
from subnet_search.training.losses import cross_entropy
from subnet_search.training.optimizer import lr_factor, make_optimizer
from subnet_search.training.skip_paths import SkipPathStep, make_skip_aware

BRANCHES, WIDTH, BLOCKS = 8, 16, (2, 2, 2)
THIN_WIDTHS = (2, 4, 6, 8, 12)  # nets of their own, over the range of the branches' multiply-adds
NESTED_WIDTH, NESTED_BRANCH = 24, 3
ADN_BLOCKS, ADN_WIDTH, ADN_LENGTH = (3, 3, 3), 8, 3  # trained for so many times the steps of the others
ADN_LR = 2.0  # of two nets whose losses are averaged, beside the learning rate of one
STATISTICS_IMAGES, WARMUP = 1000, 0.05
LR, ADAMW_LR = 0.1, 2e-3
TREES: dict[str, Any] = {
    "cifar10": {
        "animal": {"pet": ["cat", "dog"], "hoofed": ["deer", "horse"], "small": ["bird", "frog"]},
        "vehicle": {"road": ["automobile", "truck"], "far": ["airplane", "ship"]},
    },
    "fashion": {
        "clothes": {"upper body": ["t-shirt", "pullover", "coat", "shirt"], "other": ["trouser", "dress"]},
        "shoes": ["sandal", "sneaker", "ankle boot"],
        "bags": ["bag"],
    },
}
CLASSES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "fashion": ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
}  # fmt: skip
Found = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where an arm works: data, seed, and how many steps of training it has."""

    name: str
    bed: Bed
    seed: int
    splits: Splits
    steps: int

    @property
    def example(self) -> Tensor:
        return torch.zeros(1, self.bed.channels, self.bed.size, self.bed.size)

    @property
    def tree(self) -> LabelTree:
        return label_tree(CLASSES[self.name], TREES[self.name])

    def images(self) -> list[Batch]:
        assert self.splits.calibration is not None
        return first_images(self.splits.calibration, STATISTICS_IMAGES, self.seed)


def place_of(name: str, seed: int, steps: int) -> Place:
    return Place(name, BEDS[name], seed, BEDS[name].splits(seed), steps)


Update = Callable[[Batch], None]  # forward and backward


def fit(model: nn.Module, update: Update, place: Place, *, adamw: bool = False, faster: float = 1.0) -> float:
    """Trains for the steps of a place; returns this thread's seconds of one step."""
    settings = TrainSettings(lr=LR, seed=place.seed)
    lr = ADAMW_LR if adamw else LR * faster
    optimizer: torch.optim.Optimizer = make_optimizer(model, settings)
    if adamw:
        optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05)
    model.train()
    start_s = time.thread_time()
    for step, batch in enumerate(Steps(place.splits.train, place.steps, place.seed)):
        for group in optimizer.param_groups:
            group["lr"] = lr * lr_factor(step, place.steps, round(WARMUP * place.steps))
        optimizer.zero_grad(set_to_none=True)
        update(batch)
        if adamw:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    model.eval()
    return (time.thread_time() - start_s) / place.steps


@torch.no_grad()
def answers(call: Callable[[Tensor], Sequence[Tensor]], batches: Any) -> tuple[list[Tensor], Tensor]:
    """Probabilities of each answer, and the labels."""
    rows = [([z.softmax(1) for z in call(x)], y) for x, y in batches]
    return [torch.cat(parts) for parts in zip(*(z for z, _ in rows), strict=True)], torch.cat(
        [y for _, y in rows]
    )


def top1s(call: Callable[[Tensor], Sequence[Tensor]], batches: Any) -> list[float]:
    found, labels = answers(call, batches)
    return [100 * float((p.argmax(1) == labels).float().mean()) for p in found]


def seeded(place: Place, what: str) -> None:
    seed_everything(derive_seed(place.seed, what))


# --- vertical slicing ---------------------------------------------------------------------------------------------


def points(call: Callable[[Tensor], Sequence[Tensor]], macs: Sequence[int], place: Place) -> list[Found]:
    splits = {"search_val": place.splits.search_val, "test": place.splits.test}
    found = {name: top1s(call, batches) for name, batches in splits.items()}
    return [
        {"macs": m, "search_val": found["search_val"][i], "test": found["test"][i]}
        for i, m in enumerate(macs)
    ]


def triangular(place: Place) -> Found:
    """All sub-nets from one pass."""
    seeded(place, "slicing")
    net = triangular_resnet(BLOCKS, WIDTH, BRANCHES, 10, place.bed.channels, place.bed.size)
    seconds = fit(net, lambda b: (branch_loss(net(b[0]), b[1]) / BRANCHES).backward(), place)
    macs = [sum(net.row_macs[: k + 1]) for k in range(BRANCHES)]
    x = next(iter(place.splits.test))[0]
    with torch.no_grad():
        gaps = [float((a - b).abs().max()) for a, b in zip(net(x), net.rows(x), strict=True)]
    return {
        "points": points(net, macs, place),
        "coarse": coarse(net, [place.tree.levels - 1] * BRANCHES, place),
        "step_seconds": seconds,
        "train_macs": count_macs(net, place.example),
        "row_macs": list(net.row_macs),
        "row_gap": max(gaps),
        "row_ms": {str(n): time_steps(net, x[:n], clock_s=time.thread_time) for n in (1, 16)},
    }


def taxonomy(place: Place) -> Found:
    """Coarse classes from the thin sub-nets, finer ones from the thicker."""
    seeded(place, "slicing")
    tree = place.tree
    levels = tree.spread(BRANCHES)
    sizes = [tree.size(level) for level in levels]
    net = triangular_resnet(BLOCKS, WIDTH, BRANCHES, 10, place.bed.channels, place.bed.size, sizes)

    def update(batch: Batch) -> None:
        (taxonomy_loss(net(batch[0]), batch[1], tree, levels) / BRANCHES).backward()

    seconds = fit(net, update, place)
    macs = [sum(net.row_macs[: k + 1]) for k in range(BRANCHES)]
    return {
        "macs": macs,
        "levels": list(levels),
        "groups": [tree.size(level) for level in range(tree.levels)],
        "coarse": coarse(net, levels, place),
        "step_seconds": seconds,
    }


def coarse(net: nn.Module, levels: Sequence[int], place: Place) -> list[list[float]]:
    """Top-1 on test of each sub-net at every level that it knows, `[branches][levels]`."""
    tree = place.tree
    found, labels = answers(net, place.splits.test)
    return [
        [
            100 * float((tree.coarsen(p, level, to).argmax(1) == tree.labels(labels, to)).float().mean())
            for to in range(level + 1)
        ]
        for p, level in zip(found, levels, strict=True)
    ]


def nested(place: Place) -> Found:
    """The full multi-branch net: private norms and classifiers, each sub-net a pass of its own."""
    seeded(place, "slicing")
    net = NestedResNeXt(BLOCKS, NESTED_WIDTH, NESTED_BRANCH, BRANCHES, 10, place.bed.channels, place.bed.size)

    def update(batch: Batch) -> None:
        for k in range(1, BRANCHES + 1):
            (cross_entropy(net(batch[0], k), batch[1]) / BRANCHES).backward()

    seconds = fit(net, update, place)
    macs = net.costs.macs(net.space.encode([{"branches": k} for k in range(1, BRANCHES + 1)])).tolist()
    found = points(lambda x: [net(x, k) for k in range(1, BRANCHES + 1)], macs, place)
    return {"points": found, "step_seconds": seconds, "train_macs": sum(macs)}


def thin(place: Place) -> Found:
    """Plain nets of several widths, each trained by itself."""
    rows, seconds, macs = [], 0.0, 0
    for width in THIN_WIDTHS:
        seeded(place, f"thin {width}")
        net = SmallResNet(BLOCKS, width, 10, place.bed.channels)
        seconds += fit(net, lambda b, net=net: cross_entropy(net(b[0]), b[1]).backward(), place)  # type: ignore[misc]
        cost = count_macs(net, place.example)
        rows += points(lambda x, net=net: [net(x)], [cost], place)  # type: ignore[misc]
        macs += cost
    return {"points": rows, "step_seconds": seconds, "train_macs": macs}


class Exits(nn.Module):
    """A plain net with a classifier after every block."""

    def __init__(self, width: int, in_channels: int) -> None:
        super().__init__()
        self.net = SmallResNet(BLOCKS, width, 10, in_channels)
        widths = [m.bn2.num_features for m in self.net.modules() if isinstance(m, BasicBlock)]
        self.heads = nn.ModuleList([nn.Linear(width, 10) for width in widths])

    def forward(self, x: Tensor, exits: int | None = None) -> list[Tensor]:
        return [head(h.mean((2, 3))) for head, h in zip(self.heads, self._features(x, exits), strict=False)]

    def _features(self, x: Tensor, exits: int | None) -> Iterator[Tensor]:
        net: Any = self.net
        x = net.relu(net.bn1(net.conv1(x)))
        blocks = [block for stage in range(net.stages) for block in net.get_submodule(f"layer{stage + 1}")]
        for block in blocks[:exits]:
            x = block(x)
            yield x


class Upto(nn.Module):
    """The first exits alone, to count what they cost."""

    def __init__(self, net: Exits, exits: int) -> None:
        super().__init__()
        self.net, self.exits = net, exits

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.net(x, self.exits)[-1]
        return answer


def exits(place: Place) -> Found:
    """An early-exit net of nearly the branches' multiply-adds."""
    seeded(place, "exits")
    net = Exits(12, place.bed.channels)
    count = len(net.heads)
    seconds = fit(net, lambda b: (branch_loss(net(b[0]), b[1]) / count).backward(), place)
    macs = [count_macs(Upto(net, k + 1), place.example) for k in range(count)]
    return {"points": points(net, macs, place), "step_seconds": seconds, "train_macs": macs[-1]}


# --- adaptive depth -----------------------------------------------------------------------------------------------


def depth_supernet(place: Place, family: str) -> Supernet:
    seeded(place, f"depth {family}")
    if family == "resnet":
        net: nn.Module = SmallResNet(ADN_BLOCKS, ADN_WIDTH, 10, place.bed.channels)
    else:
        net = VisionTransformer(place.bed.size, 4, 8, 4, 64, 128, num_classes=10)
        nn.init.normal_(net.heads.head.weight, std=0.02)  # type: ignore[union-attr,arg-type]
    return make_elastic(net, place.example, ElasticSettings(width=False, form="own classes"))


def adaptive(
    place: Place,
    family: str,
    *,
    norms: bool = True,
    faster: float = ADN_LR,
    **step_options: Any,
) -> Found:
    """The whole net and the base net trained together; every combination measured.

    By default, half of what the base net learns comes from the labels: unlike in the paper, trainings are short.
    """
    supernet = depth_supernet(place, family)
    paths = make_skip_aware(supernet) if norms else find_skip_paths(supernet)
    step = SkipPathStep(paths, **{"hard": 0.5, **step_options})
    rng = np.random.default_rng(place.seed)

    def update(batch: Batch) -> None:
        step(supernet, batch, rng)

    seconds = fit(supernet, update, place, adamw=family != "resnet", faster=faster)
    rows = [{"name": name, **measured(supernet, config, place)} for name, config in paths.configs().items()]
    return {"points": rows, "step_seconds": seconds}


def measured(supernet: Supernet, config: SubnetConfig, place: Place) -> Found:
    statistics = recalibrate(supernet, config, place.images())
    with supernet.subnet(config, statistics):
        [test] = top1s(lambda x: [supernet(x)], place.splits.test)
    return {"test": test, "macs": int(supernet.costs.macs(supernet.space.encode([config]))[0])}


def depth_alone(place: Place, family: str) -> Found:
    """The whole net and the base net, each trained by itself."""
    rows, seconds = [], []
    supernet = depth_supernet(place, family)
    paths = find_skip_paths(supernet)
    ends = {"F" * len(paths.stages): supernet.space.largest(), "T" * len(paths.stages): paths.base}
    for name, config in ends.items():
        net = fresh(supernet, config, derive_seed(place.seed, name))
        update: Update = lambda b, net=net: cross_entropy(net(b[0]), b[1]).backward()  # type: ignore[misc]  # noqa: E731
        seconds.append(fit(net, update, place, adamw=family != "resnet"))
        found = points(lambda x, net=net: [net(x)], [count_macs(net, place.example)], place)[0]  # type: ignore[misc]
        rows.append({"name": name, **found})
    return {"points": rows, "step_seconds": sum(seconds)}
