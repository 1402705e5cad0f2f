"""Progressive sub-net search: the path of nested sub-nets that a trained supernet offers, found by greedy drops."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
from tqdm import tqdm

from search_spaces import CostTable, InvalidInput, SearchSpace, SubnetConfig
from search_spaces.presets import ladders
from subnet_search.batches import Steps
from subnet_search.data import Batch, Splits
from subnet_search.elastic.states import copy_state
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure.scoring import SharedScorer
from subnet_search.progress import progress
from subnet_search.record import Run
from subnet_search.searchers.path import PathElement, Score, path_from_json, path_to_json
from subnet_search.searchers.progressive import walk_down
from subnet_search.seeding import derive_seed
from subnet_search.settings import ProgressiveSettings, TrainSettings
from subnet_search.training import train
from subnet_search.training.losses import cross_entropy

PATH = "path.json"
TUNE_ROUND = 25  # steps between two looks at whether the accuracy is back
BAR_AFTER_S = 2.0


def progressive_search(
    supernet: Supernet, splits: Splits, settings: ProgressiveSettings | None = None, run: Run | None = None
) -> list[SubnetConfig]:
    """The configs of `find_path`: nested sub-nets, the largest first."""
    return [element.config for element in find_path(supernet, splits, settings, run)]


def find_path(
    supernet: Supernet,
    splits: Splits,
    settings: ProgressiveSettings | None = None,
    run: Run | None = None,
    *,
    predict: Callable[[SubnetConfig], float] | None = None,
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

    Source:
        Yang, He, Cao, Fan, "A Progressive Sub-Network Searching Framework for Dynamic Inference", 2020,
        arXiv:2009.05681; see `walk_down`. Unlike in the authors' code the ranked weights live on, and tuning reads
        training images, never those that score.

    Raises:
        InvalidInput: groups, floors or thresholds that make no sense, or a path.json of other weights or settings.
        SubnetSearchError: a sub-net's answers are not finite.
    """
    settings = settings or ProgressiveSettings()
    rungs = ladders(supernet.space, settings.groups, settings.step, settings.floor)
    kept = None if run is None else _Kept(run, supernet, settings)
    begun = [] if kept is None else kept.load()
    if run is not None and begun and is_walked(run):
        return begun
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
        tuned = _tune(supernet, splits, settings, scorer, element, len(path), least)
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
            tune=tune if tunes else None,
            threshold=threshold,
            relative_threshold=relative,
            begun=begun,
            keep=keep,
        )
    if kept is not None:
        kept.save(path, complete=True)
    return path


def is_walked(run: Run) -> bool:
    """Whether a path was walked to its end, and the weights that it was last tuned to are there."""
    if not run.has(PATH):
        return False
    complete, tuned = run.read_json(PATH).get("complete"), _last_tuned(read_path(run))
    return bool(complete) and (tuned is None or run.has(_weights(tuned)))


def read_path(run: Run) -> list[PathElement]:
    """The path that the run has so far."""
    return path_from_json(run.read_json(PATH)["elements"])


def load_path(run: Run, supernet: Supernet, settings: ProgressiveSettings) -> list[PathElement]:
    """The path that `find_path` left in the run; the supernet gets the weights that go with it.

    Args:
        run: where it was walked.
        supernet: with the weights it was begun with.
        settings: those of the walk.

    Raises:
        InvalidInput: it was begun with other weights or settings, or is damaged.
    """
    return _Kept(run, supernet, settings).load()


def store_path(
    run: Run, supernet: Supernet, settings: ProgressiveSettings, path: Sequence[PathElement]
) -> None:
    """Writes path.json as the walk that comes to this path would."""
    _Kept(run, supernet, settings).save(path, complete=True)


class Foreseen(NamedTuple):
    """The path a walk might take, and how many looks at sub-nets it would take."""

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

    path = walk_down(space, costs, rungs, Guess(), **_options(settings))
    return Foreseen(path, looks[False], looks[True])


def _options(settings: ProgressiveSettings) -> dict[str, Any]:
    return {
        "criterion": settings.criterion,
        "smallest_macs_share": settings.smallest_macs_share,
        "screen": settings.screen or None,
        "finalists": settings.finalists,
    }


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


@dataclass
class _OnlyStep:
    """Trains one sub-net of the supernet on the labels; weights that it does not use stay as they are."""

    config: SubnetConfig
    images: int = 0  # so far

    def __call__(self, supernet: Supernet, batch: Batch, rng: np.random.Generator) -> float:
        """Leaves the gradients of that sub-net; returns its cross-entropy."""
        images, labels = batch  # [B, ...], [B]
        with supernet.subnet(self.config):
            loss = cross_entropy(supernet(images), labels)
            loss.backward()
        self.images += len(labels)
        return loss.item()


def _tune(
    supernet: Supernet,
    splits: Splits,
    settings: ProgressiveSettings,
    scorer: SharedScorer,
    element: PathElement,
    place: int,
    least: float,
) -> Score:
    """Trains the weights of one sub-net until its accuracy is `least` again, or the steps are used up."""
    score, left, rounds = element.score, settings.tune_steps, 0
    while left and score.top1_percent < least:
        count = min(TUNE_ROUND, left)
        seed = derive_seed(settings.seed, "tune", place, rounds)
        step, shown = _OnlyStep(element.config), Steps(splits.train, count, seed)
        plain = TrainSettings(
            epochs=1,
            lr=settings.tune_lr,
            momentum=0.0,
            weight_decay=0.0,
            warmup_epochs=0.0,
            device=settings.device,
            seed=seed,
        )
        train(supernet, dataclasses.replace(splits, train=shown), step, plain)
        scorer.count(element.config, step.images)
        scorer.forget()
        score = scorer(element.config, True)
        left, rounds = left - count, rounds + 1
    return score


class _Kept:
    """A path in a run folder, with the weights that the last tuning left."""

    def __init__(self, run: Run, supernet: Supernet, settings: ProgressiveSettings) -> None:
        self._run, self._supernet = run, supernet
        told = set(ProgressiveSettings.model_fields) - {"device", "memory_mib"}
        digest = hashlib.sha256(settings.model_dump_json(include=told).encode())
        for name, tensor in sorted(supernet.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).numpy().tobytes())
        self._context = digest.hexdigest()[:16]

    def load(self) -> list[PathElement]:
        """The path so far; the supernet gets the weights that go with it.

        Raises:
            InvalidInput: it was begun with other weights or settings.
        """
        if not self._run.has(PATH):
            return []
        stored = self._run.read_json(PATH)
        if stored.get("context") != self._context:
            raise InvalidInput(
                f"{self._run.folder}/{PATH} was begun with other weights or settings; delete it to walk again, or "
                "begin a new run with --name"
            )
        path = path_from_json(stored["elements"])
        if (tuned := _last_tuned(path)) is not None:
            if not self._run.has(_weights(tuned)):
                return []  # without its weights a path cannot go on
            state = safetensors.torch.load_file(self._run.verify(_weights(tuned)))
            copy_state(self._supernet.model, state)
        return path

    def save(self, path: Sequence[PathElement], *, complete: bool = False) -> None:
        """Writes path.json; weights of earlier tunings are needed no longer."""
        elements = path_to_json(path)
        self._run.write_json(PATH, {"context": self._context, "complete": complete, "elements": elements})
        tuned = [place for place, element in enumerate(path) if element.tuned]
        for place in tuned[:-1]:
            self._run.delete(_weights(place))

    def save_weights(self, place: int) -> None:
        """Writes the weights after the tuning of an element, before path.json knows of it."""
        state = {
            n: t.detach().cpu().clone().contiguous() for n, t in self._supernet.model.state_dict().items()
        }
        self._run.write(_weights(place), safetensors.torch.save(state))


def _last_tuned(path: Sequence[PathElement]) -> int | None:
    return max((place for place, element in enumerate(path) if element.tuned), default=None)


def _weights(place: int) -> str:
    return f"path-weights-{place}.safetensors"
