"""Progressive sub-net search: the path of nested sub-nets that a trained supernet offers, found by greedy drops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from search_spaces import CostTable, SearchSpace, SubnetConfig
from search_spaces.presets import ladders
from subnet_search.data import Splits
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure import SubnetLatency
from subnet_search.measure.scoring import SharedScorer
from subnet_search.measure.subnet_latency import BETWEEN_NEIGHBOURS
from subnet_search.path_files import KeptPath, is_walked
from subnet_search.path_tuning import tune_element
from subnet_search.progress import progress
from subnet_search.record import Run
from subnet_search.searchers.path import PathElement, Score
from subnet_search.searchers.progressive import walk_down
from subnet_search.settings import DeviceSettings, ProgressiveSettings

BAR_AFTER_S = 2.0


def progressive_search(
    supernet: Supernet,
    splits: Splits,
    settings: ProgressiveSettings | None = None,
    run: Run | None = None,
    *,
    latency: Callable[[SubnetConfig], float] | None = None,
) -> list[SubnetConfig]:
    """The configs of `find_path`: nested sub-nets, the largest first."""
    return [element.config for element in find_path(supernet, splits, settings, run, latency=latency)]


def find_path(
    supernet: Supernet,
    splits: Splits,
    settings: ProgressiveSettings | None = None,
    run: Run | None = None,
    *,
    predict: Callable[[SubnetConfig], float] | None = None,
    latency: Callable[[SubnetConfig], float] | None = None,
) -> list[PathElement]:
    """Walks from the whole net down: in each step the drop that hurts least is kept.

    Reorder the supernet by a ranking first: dropped are the last channels. A short training by the sandwich rule
    before (`train`) makes late drops more than noise. To train the path jointly afterwards, give
    `SandwichStep(sampling=Among(path))` to `train`.

    Args:
        supernet: in ranked order; its weights change only where a threshold asks for tuning.
        splits: `search_val`, `calibration` and, for tuning, `train` are read.
        settings: which drops there are, how they are scored, and when weights are tuned.
        run: where the path is kept after each step (`path.json`), and from where a second call goes on.
        predict: see `walk_down`.
        latency: see `walk_down`; for the criterion "loss_per_ms", where by default sub-nets are timed beside the
            largest one on the settings' device, one image a call.

    Source:
        Yang, He, Cao, Fan, "A Progressive Sub-Network Searching Framework for Dynamic Inference", 2020,
        arXiv:2009.05681; see `walk_down`. Unlike in the authors' code the ranked weights live on, and tuning reads
        training images, never those that score.

    Raises:
        InvalidInput: groups, floors or thresholds that make no sense, or a path.json of other weights, settings,
            predictions, or latencies of another machine.
        SubnetSearchError: a sub-net's answers are not finite.
    """
    settings = settings or ProgressiveSettings()
    rungs = ladders(supernet.space, settings.groups, settings.step, settings.floor)
    kept = None if run is None else KeptPath(run, supernet, settings, predict)
    begun = [] if kept is None else kept.load()
    if run is not None and begun and is_walked(run):
        return begun
    if latency is None and settings.criterion == "loss_per_ms":
        latency = _timed_here(supernet, settings, kept)
    if kept is not None:
        kept.go_on_with(getattr(latency, "timing", None), begun)
    scorer = SharedScorer(supernet, splits, settings)
    threshold, relative = settings.threshold, settings.relative_threshold
    tunes = threshold is not None or relative is not None
    path = list(begun)
    bar = _Bar(supernet, settings)

    def keep(found: object) -> None:
        path[:] = found  # type: ignore[call-overload]
        if kept is not None:
            kept.save(path)
        bar.show(path)

    def tune(element: PathElement) -> Score | None:
        least = threshold if threshold is not None else (relative or 0.0) * path[0].score.top1_percent
        tuned = tune_element(supernet, splits, settings, scorer, element, len(path), least)
        if kept is not None:
            kept.save_weights(len(path))
        return tuned

    with bar:
        bar.show(begun)
        path = walk_down(
            supernet.space,
            supernet.costs,
            rungs,
            scorer,
            **_options(settings),
            predict=predict,
            latency=latency,
            tune=tune if tunes else None,
            threshold=threshold,
            relative_threshold=relative,
            begun=begun,
            keep=keep,
        )
    if kept is not None:
        kept.save(path, complete=True)
    return path


class Foreseen(NamedTuple):
    """The path a walk might take, and how many looks at sub-nets it would take; what is timed has a final look."""

    path: list[PathElement]
    first_looks: int
    final_looks: int


def foresee_path(space: SearchSpace, costs: CostTable, settings: ProgressiveSettings) -> Foreseen:
    """Walks by arithmetic alone, as if what a layer loses hurt with the square of its share.

    Raises:
        InvalidInput: what `find_path` would refuse before it looks at anything.
    """
    rungs = ladders(space, settings.groups, settings.step, settings.floor)
    looks = {True: 0, False: 0}

    class Guess:
        images = 0

        def __call__(self, config: SubnetConfig, final: bool) -> Score:
            looks[final] += 1
            lost = sum((1 - config[knob.name] / knob.largest) ** 2 for knob in space.knobs)
            return Score(lost, 100 * math.exp(-lost))

    def guess_ms(config: SubnetConfig) -> float:
        return 1.0 + float(costs.macs(space.encode([config]))[0])

    latency = guess_ms if settings.criterion == "loss_per_ms" else None
    path = walk_down(space, costs, rungs, Guess(), **_options(settings), latency=latency)
    return Foreseen(path, looks[False], looks[True])


def _options(settings: ProgressiveSettings) -> dict[str, Any]:
    return {
        "criterion": settings.criterion,
        "smallest_macs_share": settings.smallest_macs_share,
        "screen": settings.screen or None,
        "finalists": settings.finalists,
    }


def _timed_here(supernet: Supernet, settings: ProgressiveSettings, kept: KeptPath | None) -> SubnetLatency:
    """Sub-nets beside the largest one on the settings' device, in the milliseconds that the path was begun with."""
    return SubnetLatency(
        supernet,
        profile=DeviceSettings(name=settings.device),
        seed=settings.seed,
        protocol=BETWEEN_NEIGHBOURS,
        timing=None if kept is None else kept.timing,
    )


class _Bar:
    """How many percent of the multiply-adds are dropped, of those that will be at most."""

    def __init__(self, supernet: Supernet, settings: ProgressiveSettings) -> None:
        self._supernet = supernet
        self._bar: tqdm[Any] = progress(
            math.floor(100 * (1 - settings.smallest_macs_share)), "path", "% of MACs", delay_s=BAR_AFTER_S
        )

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, path: Sequence[PathElement]) -> None:
        """Moves to the end of the path so far."""
        if not path or self._bar.disable:
            return
        space = self._supernet.space
        whole, last = self._supernet.costs.macs(space.encode([space.largest(), path[-1].config])).tolist()
        self._bar.set_postfix_str(f"{len(path)} subnets, {path[-1].score.top1_percent:.1f} %", refresh=False)
        self._bar.update(math.floor(100 * (1 - last / whole)) - self._bar.n)
