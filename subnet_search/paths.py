"""Progressive sub-net search: the path of nested sub-nets that a trained supernet offers, found by greedy drops."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import safetensors.torch

from search_spaces import InvalidInput, SubnetConfig
from search_spaces.presets import ladders
from subnet_search.batches import Steps
from subnet_search.data import Batch, Splits
from subnet_search.elastic.states import copy_state
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure.scoring import SharedScorer
from subnet_search.record import Run
from subnet_search.searchers.path import PathElement, Score, path_from_json, path_to_json
from subnet_search.searchers.progressive import walk_down
from subnet_search.seeding import derive_seed
from subnet_search.settings import ProgressiveSettings, TrainSettings
from subnet_search.training import train
from subnet_search.training.losses import cross_entropy

PATH = "path.json"
TUNE_ROUND = 25  # steps between two looks at whether the accuracy is back


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
        arXiv:2009.05681; see `walk_down`. Unlike in the authors' code the ranked weights live on, and what is tuned
        are the training images, never validation images.

    Raises:
        InvalidInput: groups, floors or thresholds that make no sense, or a path.json of other weights or settings.
        SubnetSearchError: a sub-net's answers are not finite.
    """
    settings = settings or ProgressiveSettings()
    rungs = ladders(supernet.space, settings.groups, settings.step, settings.floor)
    kept = None if run is None else _Kept(run, supernet, settings)
    begun = [] if kept is None else kept.load()
    scorer = SharedScorer(supernet, splits, settings)
    threshold, relative = settings.threshold, settings.relative_threshold
    tunes = threshold is not None or relative is not None
    path = list(begun)

    def keep(found: object) -> None:
        path[:] = found  # type: ignore[call-overload]
        if kept is not None:
            kept.save(path)

    def tune(element: PathElement) -> Score | None:
        least = threshold if threshold is not None else (relative or 0.0) * path[0].score.top1_percent
        tuned = _tune(supernet, splits, settings, scorer, element, len(path), least)
        if kept is not None:
            kept.save_weights(len(path))
        return tuned

    return walk_down(
        supernet.space,
        supernet.costs,
        rungs,
        scorer,
        criterion=settings.criterion,
        smallest_macs_share=settings.smallest_macs_share,
        screen=settings.screen or None,
        finalists=settings.finalists,
        predict=predict,
        tune=tune if tunes else None,
        threshold=threshold,
        relative_threshold=relative,
        begun=begun,
        keep=keep,
    )


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
        digest = hashlib.sha256(settings.model_dump_json(exclude={"device", "memory_mib"}).encode())
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
        if tuned := [place for place, element in enumerate(path) if element.tuned]:
            state = safetensors.torch.load_file(self._run.verify(_weights(tuned[-1])))
            copy_state(self._supernet.model, state)
        return path

    def save(self, path: list[PathElement]) -> None:
        """Writes path.json; weights of earlier tunings are needed no longer."""
        self._run.write_json(PATH, {"context": self._context, "elements": path_to_json(path)})
        tuned = [place for place, element in enumerate(path) if element.tuned]
        for place in tuned[:-1]:
            self._run.delete(_weights(place))

    def save_weights(self, place: int) -> None:
        """Writes the weights after the tuning of an element, before path.json knows of it."""
        state = {
            n: t.detach().cpu().clone().contiguous() for n, t in self._supernet.model.state_dict().items()
        }
        self._run.write(_weights(place), safetensors.torch.save(state))


def _weights(place: int) -> str:
    return f"path-weights-{place}.safetensors"
