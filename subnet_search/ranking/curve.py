"""Slice curves: what nets of uniform width reach that keep the units ranked first; they tell rankings apart."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean
from typing import Any

from tqdm import tqdm

from search_spaces import SubnetConfig
from subnet_search.batches import device_of, input_size, to_device
from subnet_search.data import Batch
from subnet_search.elastic.statistics import recalibrate
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure.accuracy import top1_percent
from subnet_search.progress import progress
from subnet_search.ranking.base import RANKERS, random_ranking, rank
from subnet_search.ranking.noise import (
    BAR_AFTER_S,
    NoiseLevels,
    levels_to_json,
    noise_levels,
    weight_noise_ranking,
)
from subnet_search.ranking.scores import Ranker, Ranking, norms
from subnet_search.settings import RankSettings

COMPARED = ("noise", "l1", "bn_scale", "taylor", "random")  # of equally good ones the first is taken
CONTROL = "random"
SHARES = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875)


@dataclass(frozen=True)
class SliceCurves:
    """Top-1 against width for several rankings of one trained network.

    Attributes:
        shares: of every layer's width, ascending; all blocks are kept.
        macs_share: of the largest net's multiply-adds, by share.
        top1_percent: ranker -> top-1 by share, with statistics of its own and without tuning.
        images: how many each net was asked.
    """

    shares: tuple[float, ...]
    macs_share: tuple[float, ...]
    top1_percent: Mapping[str, tuple[float, ...]]
    images: int

    @property
    def best(self) -> str:
        """The ranker with the best mean; the control only where there is no other."""
        names = [name for name in self.top1_percent if name != CONTROL] or [CONTROL]
        return max(names, key=lambda name: fmean(self.top1_percent[name]))  # the first of equal ones


@dataclass(frozen=True)
class Ranked:
    """A ranking and what led to it.

    Attributes:
        ranker: by name.
        ranking: its order.
        levels: of noise, where they were learned, by the units as they were before reordering.
        curves: of all rankings compared; None where none were, or where no width can be chosen.
    """

    ranker: str
    ranking: Ranking
    levels: NoiseLevels | None
    curves: SliceCurves | None

    def to_json(self) -> dict[str, Any]:
        """As plain data, for ranking.json."""
        found: dict[str, Any] = {"ranker": self.ranker}
        found["order"] = {name: units.tolist() for name, units in self.ranking.items()}
        if self.levels is not None:
            found["levels"] = levels_to_json(self.levels)
        if self.curves is not None:
            found["curve"] = asdict(self.curves)
        return found


def rank_by(
    settings: RankSettings, supernet: Supernet, batches: Sequence[Batch], images: Sequence[Batch]
) -> Ranked:
    """Ranks as the settings say, comparing rankings by their slice curves.

    Args:
        settings: the ranker, or "best".
        supernet: trained; it stays as it is.
        batches: training data without augmentation, to rank by and to set batch-norm statistics.
        images: of search-validation; not read without curves.

    Raises:
        InvalidInput, SubnetSearchError: as the rankers.
    """
    names = (
        [name for name in COMPARED if name != "bn_scale" or has_scales(supernet)] if settings.curve else []
    )
    named = () if settings.ranker == "best" else (settings.ranker,)
    found: dict[str, Ranking] = {}
    levels = None
    for name in dict.fromkeys((*names, *named)):
        if name == "noise":
            levels = noise_levels(supernet, batches, steps=settings.steps, seed=settings.seed)
            found[name] = levels.ranking()
        else:
            found[name] = rank(supernet, batches, _ranker(name, settings))
    curves = slice_curves(supernet, found, batches, images) if settings.curve else None
    chosen = named[0] if named else curves.best if curves else names[0]
    return Ranked(chosen, found[chosen], levels, curves)


def slice_curves(
    supernet: Supernet,
    rankings: Mapping[str, Ranking],
    batches: Sequence[Batch],
    images: Iterable[Batch],
    shares: Sequence[float] = SHARES,
) -> SliceCurves | None:
    """Measures nets of uniform width of copies that are reordered by each ranking.

    Args:
        supernet: trained; it stays as it is.
        rankings: by name.
        batches: training data without augmentation; they set batch-norm statistics.
        images: (input `[B, ...]`, class `[B]`) of search-validation.
        shares: of every layer's width; those that give the same net as a smaller one or the whole net are left out.

    Returns:
        The curves; None where the space has no such net.

    Raises:
        InvalidInput: a ranking of another network, or data that do not fit.
        SubnetSearchError: an answer is not finite.
    """
    device, size = device_of(supernet), input_size(supernet.example)
    shown = list(to_device(images, device, size))
    nets = _uniform(supernet, shares)
    if not nets:
        return None
    top1: dict[str, tuple[float, ...]] = {}
    bar: tqdm[Any] = progress(len(rankings) * len(nets), "slice curves", "net", delay_s=BAR_AFTER_S)
    with bar:
        for name, ranking in rankings.items():
            reordered, found = copy.deepcopy(supernet), []
            reordered.reorder(ranking)
            for config in nets.values():
                statistics = recalibrate(reordered, config, batches)
                with reordered.subnet(config, statistics):
                    found.append(top1_percent(reordered, shown, size))
                bar.update()
            top1[name] = tuple(found)
    rows = supernet.space.encode([supernet.space.largest(), *nets.values()])
    macs = supernet.costs.macs(rows)
    macs_share = tuple((macs[1:] / macs[0]).tolist())
    return SliceCurves(tuple(nets), macs_share, top1, sum(len(labels) for _, labels in shown))


def table_of(curves: SliceCurves, chosen: str) -> list[str]:
    """The curves for people, a line for each ranker."""
    lines = [
        f"slice curves: top-1 in percent by width, untuned, on {curves.images:,} images of search-validation",
        f"{'':<14}" + "".join(f"{100 * share:>7.4g}%" for share in curves.shares) + f"{'mean':>8}",
    ]
    for name, found in curves.top1_percent.items():
        mark = " <- taken" if name == chosen else ""
        lines.append(f"{name:<14}" + "".join(f"{top1:>8.2f}" for top1 in (*found, fmean(found))) + mark)
    return lines


def has_scales(supernet: Supernet) -> bool:
    """Whether there is a batch norm to rank by."""
    return any(norms(supernet, group.readers) for group in supernet.groups.values())


def _uniform(supernet: Supernet, shares: Sequence[float]) -> dict[float, SubnetConfig]:
    """The different nets of uniform width, the whole one left out, by their share."""
    found: dict[float, SubnetConfig] = {}
    for share in sorted(shares):
        config = supernet.space.uniform(share)
        if config not in (supernet.space.largest(), *found.values()):
            found[share] = config
    return found


def _ranker(name: str, settings: RankSettings) -> Ranker:
    """The ranker of that name, with the settings' seed and steps where it takes them."""
    if name == CONTROL:
        return partial(random_ranking, seed=settings.seed)
    if name == "weight_noise":
        return partial(weight_noise_ranking, steps=settings.steps, seed=settings.seed)
    return RANKERS[name]
