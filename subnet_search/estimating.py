"""Measures what each stage takes here: its own code walks the road in small, in a folder that is thrown away.

Few steps, few evaluations and one sub-net; where a pass over the data takes long, the first batches stand for all.
The learning rate is next to nothing, so that no weight leaves its range, which changes no time.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from search_spaces import SubnetConfig
from search_spaces.costs import COST_NAMES
from search_spaces.files import config_to_json
from subnet_search.data import Batch
from subnet_search.elastic import Supernet
from subnet_search.fronts import search_front
from subnet_search.measure.scoring import SharedScorer
from subnet_search.path_files import store_path
from subnet_search.path_tuning import TUNE_ROUND
from subnet_search.paths import foresee_path
from subnet_search.planning import Rate, num_chosen
from subnet_search.progress import silenced
from subnet_search.recipe import Recipe, recipe_to_toml, walks_a_path
from subnet_search.record import Evaluation, Run, create_run
from subnet_search.record.atomic import telling_what_failed
from subnet_search.searchers import SpaceExhausted, make_searcher
from subnet_search.searchers.controls import SHARES
from subnet_search.searchers.drive import MOST_UNIFORM, RANDOM_SHARE
from subnet_search.searchers.feasible import Feasible
from subnet_search.settings import PREDICTED
from subnet_search.stages import (
    export_one,
    join_path,
    look_at_test,
    prepare,
    rank_channels,
    train_supernet,
    train_teacher,
)
from subnet_search.standing import JOINING
from subnet_search.training.loop import length_of
from subnet_search.tuning import drop_checkpoint, tune
from subnet_search.workbench import Workbench, set_up_process

ENOUGH_S = 0.4  # of one measurement; what takes longer as a whole is measured in part
MOST_EVALUATIONS, ASKS = 16, 14
NEXT_TO_NOTHING = 1e-9

Report = Callable[[Path], object]  # writes the report of a run folder
clock_s = time.perf_counter


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What walking the road in small showed.

    Attributes:
        rates: seconds by stage.
        bytes: what a whole run will need on the disk.
        seconds: what the rehearsal took.
        lines: what the first stage said about the network.
    """

    rates: dict[str, Rate]
    bytes: int
    seconds: float
    lines: tuple[str, ...]


def rehearse(recipe: Recipe, out: Path, report: Report) -> Rehearsal:
    """Walks the road of a recipe in small; leaves nothing behind.

    Args:
        recipe: checked on the way, as the first stage of a run does.
        out: where the run will be; the folder for the small one is made beside it.
        report: writes the report.

    Raises:
        InvalidInput, SubnetSearchError: what the run itself would raise.
    """
    start_s = clock_s()
    set_up_process(recipe)
    parent = place_for(out)
    with telling_what_failed(parent):
        scratch = tempfile.TemporaryDirectory(prefix=".subnet-search-", dir=parent)
    with scratch as folder, silenced():
        walked = _without_board(recipe)
        with create_run(Path(folder, "run"), recipe_to_toml(walked)) as run:
            road = _Road(run, walked)
            rates = road.walk()
        seconds = _timed(lambda: report(Path(run.folder)))
        rates["report"] = Rate(seconds)
        size = _bytes_needed(Path(run.folder), recipe)
    return Rehearsal(rates, size, clock_s() - start_s, tuple(road.told))


def place_for(out: Path) -> Path:
    """The folder that is there already and on the disk of the runs: `out`, or the nearest one above it."""
    return next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())


class Part:
    """The first `count` batches, with the times at which each pass asked for one and came to its end."""

    def __init__(self, batches: Iterable[Batch], count: int) -> None:
        self.batches, self.count = batches, count
        self.passes: list[list[float]] = []

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        ticks: list[float] = []
        self.passes.append(ticks)
        for batch in islice(self.batches, self.count):
            ticks.append(clock_s())
            yield batch
        ticks.append(clock_s())


class _Road:
    """The stages of one small run."""

    def __init__(self, run: Run, recipe: Recipe) -> None:
        self.told: list[str] = []
        self.run, self.recipe, self.bench = run, recipe, Workbench(run, recipe, self.told.append)

    def walk(self) -> dict[str, Rate]:
        """The rates of all stages but the report."""
        bench, rates = self.bench, {"prepare": Rate(_timed(lambda: prepare(self.bench)))}
        self.bench.say = lambda _: None
        self.splits = bench.splits
        self.limits = {n: b for n, b in self.recipe.search.limits.items() if n in COST_NAMES}
        rates["teacher"] = self._training(self._train_teacher) if self.recipe.model.epochs else Rate(0.0)
        rates["rank"] = Rate(self._rank_s())
        rates["train"] = self._training(self._train_supernet)
        if walks_a_path(self.recipe):
            rates["path"] = Rate(self._path_s(rates["train"]))
            rates["join"] = self._training(self._join)
        rates["search"] = replace(self._search(), most=self._most_evaluations())
        config, stand_in = self._typical(), Part(self.splits.search_val, len(self._val))
        bench.splits = replace(self.splits, search_val=self._val, test=stand_in)  # test is not looked at
        self.run.write_json(f"subnets/{config.key}/config.json", config_to_json(config))
        rates["finetune"] = self._training(lambda epochs: self._tune(config, epochs))
        pass_s = _timed(lambda: look_at_test(bench)) / 2  # one sub-net and the whole network
        unread = self.num_val / len(self._val) - 1  # further passes as long as this one
        rates["finetune"] = replace(
            rates["finetune"], start_s=rates["finetune"].start_s + 2 * unread * pass_s
        )
        rates["test"] = Rate(pass_s * _count(self.splits.test, self.num_val) / len(self._val))
        rates["export"] = Rate(_timed(lambda: export_one(bench, config)) + 2 * unread * pass_s)
        return rates

    def _change(self, table: str, **values: Any) -> None:
        tables = {table: getattr(self.recipe, table).model_copy(update=values)}
        self.bench.recipe = self.bench.recipe.model_copy(update=tables)

    def _training(self, work: Callable[[int], None]) -> Rate:
        """Of one epoch over all batches, from a few steps of two or more short epochs."""
        num_batches, before = length_of(self.splits.train), self.bench.splits

        def measured(count: int, epochs: int) -> tuple[float, float, float]:
            part = Part(self.splits.train, count)
            self.bench.splits = replace(before, train=part)
            took_s = _timed(lambda: work(epochs))
            passes = [ticks for ticks in part.passes if len(ticks) == count + 1][-epochs:]
            step_s = sum(ticks[-1] - ticks[0] for ticks in passes) / (count * epochs)
            gaps_s = [after[0] - before[-1] for before, after in pairwise(passes)]
            return took_s, step_s, sum(gaps_s) / max(len(gaps_s), 1)

        _, step_s, _ = measured(min(2, num_batches), 1)  # warms up, too
        count = min(num_batches, max(1, int(ENOUGH_S / 2 / step_s)))
        epochs = min(max(2, int(ENOUGH_S / (count * step_s))), 8)
        took_s, step_s, gap_s = measured(count, epochs)
        self.bench.splits = before
        start_s = took_s - epochs * (count * step_s + gap_s)
        return Rate(max(start_s, 0.0), num_batches * step_s + gap_s)

    def _train_teacher(self, epochs: int) -> None:
        drop_checkpoint(self.run, "checkpoint")
        self._change("model", epochs=epochs)
        self._change("train", lr=NEXT_TO_NOTHING)
        train_teacher(self.bench)

    def _train_supernet(self, epochs: int) -> None:
        drop_checkpoint(self.run, "checkpoint")
        self._change("train", epochs=epochs, lr=NEXT_TO_NOTHING)
        train_supernet(self.bench)

    def _join(self, epochs: int) -> None:
        drop_checkpoint(self.run, JOINING)
        self._change("progressive", epochs=epochs, lr=NEXT_TO_NOTHING)
        join_path(self.bench)

    def _path_s(self, training: Rate) -> float:
        """All looks of a path that is only foreseen; that path is left in the run for what follows."""
        start_s, asked, splits = clock_s(), self.recipe.progressive, self.splits
        supernet = self.bench.trained_supernet()
        foreseen = foresee_path(self.bench.space, self.bench.costs, asked)
        besides_s = clock_s() - start_s
        predict = self.bench.prediction(supernet)
        besides_s += len(foreseen.path) * _timed(
            lambda: store_path(self.run, supernet, asked, foreseen.path, predict)
        )
        num_val = _count(splits.search_val, 0) or sum(1 for _ in splits.search_val)
        ends = [[element.config for element in pair] for pair in (foreseen.path[:2], foreseen.path[-2:])]
        read_s = 0.0

        def look_s(final: bool) -> float:
            images = asked.calibration_images + (asked.final_images if final else asked.first_images)
            whole = -(-images // self.recipe.data.batch_size)

            def measured(parts: int) -> float:
                nonlocal read_s

                def share(amount: int) -> int:
                    return -(-amount * parts // whole)

                names = ("calibration_images", "first_images", "final_images")
                fewer = asked.model_copy(update={n: max(2, share(getattr(asked, n))) for n in names})
                part = replace(splits, search_val=Part(splits.search_val, share(num_val)))
                start_s = clock_s()
                scorer = SharedScorer(supernet, part, fewer)
                read_s, taken_s = (clock_s() - start_s) * whole / parts, 0.0
                for before, after in ends:
                    scorer(before, final)  # what both have in common is computed once
                    taken_s += _timed(lambda config=after: scorer(config, final)) / len(ends)  # type: ignore[misc]
                return taken_s

            return extrapolated(measured, whole)

        first_s = look_s(False) if foreseen.first_looks else 0.0
        final_s = look_s(True)
        seconds = foreseen.first_looks * first_s + foreseen.final_looks * final_s
        if asked.threshold is not None or asked.relative_threshold is not None:  # say, at every other sub-net
            step_s = training.unit_s / length_of(splits.train) / (self.recipe.train.num_random + 2)
            seconds += len(foreseen.path) / 2 * (TUNE_ROUND * step_s + final_s)
        return besides_s + read_s + seconds + foreseen.final_looks * self._clock_s(supernet, ends[0][1])

    def _clock_s(self, supernet: Supernet, config: SubnetConfig) -> float:
        """Timing one sub-net of a path, where its criterion asks for that."""
        latency = self.bench.path_latency(supernet)
        return 0.0 if latency is None else _timed(lambda: latency(config))

    def _most_evaluations(self) -> int | None:
        """How many sub-nets a search can look at that only knows so many; None where it can go on and on."""
        search = self.recipe.search
        if walks_a_path(self.recipe):
            return MOST_UNIFORM + int(RANDOM_SHARE * search.evaluations) + len(self.bench.path())
        if search.searcher == "uniform":
            return len({self.bench.space.uniform(float(share)) for share in SHARES})
        return None

    def _tune(self, config: SubnetConfig, epochs: int) -> None:
        self.run.delete(f"subnets/{config.key}/metrics.json")
        self._change("finetune", epochs=epochs, lr=NEXT_TO_NOTHING)
        tune(self.bench, config)

    def _rank_s(self) -> float:
        """All of it is done in equal parts: images to rank by, steps of noise, images to compare by."""
        asked, size = self.recipe.rank, self.recipe.data.batch_size
        whole = -(-asked.images // size)
        num_val = _count(self.splits.search_val, 0) or sum(1 for _ in self.splits.search_val)

        def measured(parts: int) -> float:
            def share(amount: int) -> int:
                return -(-amount * parts // whole)

            self._change(
                "rank",
                images=min(asked.images, parts * size),
                steps=share(asked.steps),
                val_images=share(asked.val_images),
            )
            self.bench.splits = replace(self.splits, search_val=Part(self.splits.search_val, share(num_val)))
            return _timed(lambda: rank_channels(self.bench))

        try:
            return extrapolated(measured, whole)
        finally:
            self.bench.splits = self.splits

    def _search(self) -> Rate:
        """Building the evaluator, and one evaluation with the searcher's part in it."""
        self.num_val = _count(self.splits.search_val, 0) or sum(1 for _ in self.splits.search_val)
        built_s = 0.0

        def measured(count: int, evaluations: int = 2) -> float:
            nonlocal built_s
            self._val = Part(self.splits.search_val, count)
            images = self.recipe.evaluate.calibration_images
            self._change("evaluate", calibration_images=max(1, images * count // self.num_val))
            self._change("search", evaluations=evaluations, limits=self.limits, minutes=None)
            self.bench.splits = replace(self.splits, search_val=self._val)
            self.bench.__dict__.pop("evaluator", None)
            built_s = _timed(lambda: self.bench.evaluator)
            return _timed(lambda: search_front(self.bench)) / evaluations

        evaluation_s = extrapolated(measured, self.num_val)
        if len(self._val) == self.num_val:
            evaluations = min(MOST_EVALUATIONS, int(ENOUGH_S / evaluation_s))
            if evaluations > 2:
                self._change("evaluate", seed=self.recipe.evaluate.seed + 1)  # nothing of it is on record
                evaluation_s = measured(self.num_val, evaluations)
        built_s *= self.num_val / len(self._val)
        return Rate(built_s, evaluation_s + self._ask_s())

    def _ask_s(self) -> float:
        """What the searcher takes to propose a sub-net, once it has a few to learn from."""
        bench, settings = self.bench, self.recipe.search
        if walks_a_path(self.recipe):
            return 0.0  # the path is there already
        objectives = bench.evaluator.objectives
        searcher = make_searcher(
            settings.searcher, bench.space, objectives, limits=bench.limits(self.limits), costs=bench.costs
        )
        rng, taken = np.random.default_rng(0), [0.0]
        with suppress(SpaceExhausted):
            for _ in range(ASKS):
                start_s = clock_s()
                config = searcher.ask()
                taken.append(clock_s() - start_s)
                searcher.tell(Evaluation(config, tuple(rng.random(len(objectives)).tolist())))
        return sum(taken[-3:]) / len(taken[-3:])

    def _typical(self) -> SubnetConfig:
        """A sub-net of half the width, within the limits on costs."""
        bench = self.bench
        return Feasible(bench.space, bench.costs, bench.limits(self.limits)).repair(bench.space.uniform(0.5))


def _without_board(recipe: Recipe) -> Recipe:
    """The recipe with multiply-adds for what a board is expected to take: as quick, and known of every run."""
    search = recipe.search
    if PREDICTED not in search.objectives:
        return recipe
    limits, *others = (
        {name: bound for name, bound in limits.items() if name != PREDICTED}
        for limits in (search.limits, *search.choose_under)
    )
    changed = {
        "objectives": tuple(dict.fromkeys("macs" if o == PREDICTED else o for o in search.objectives)),
        "limits": limits,
        "choose_under": tuple(filter(None, others)),
    }
    return recipe.model_copy(update={"search": search.model_copy(update=changed)})


def extrapolated(measured: Callable[[int], float], whole: int) -> float:
    """Seconds that `measured(whole)` takes: measured if that is quick, else on a straight line through smaller ones."""
    size, seconds = 1, measured(1)
    if whole == 1 or seconds > ENOUGH_S:
        return seconds * whole
    seconds, smaller = measured(1), (0, 0.0)  # the first one warmed up
    while size < whole and seconds <= ENOUGH_S:
        smaller, size = (size, seconds), min(whole, 4 * size)
        seconds = measured(size)
    slope_s = (seconds - smaller[1]) / (size - smaller[0])
    return seconds + max(slope_s, 0.0) * (whole - size)


def _timed(work: Callable[[], object]) -> float:
    start_s = clock_s()
    work()
    return clock_s() - start_s


def _count(batches: Any, unknown: int) -> int:
    """How many batches there are, `unknown` if that is not told."""
    try:
        return len(batches) or unknown
    except TypeError:
        return unknown


def _bytes_needed(folder: Path, recipe: Recipe) -> int:
    """For a whole run, after a small one: twice its files, since each is written beside its place first."""
    sizes = {p.relative_to(folder).parts[0]: 0 for p in folder.rglob("*")}
    for path in folder.rglob("*"):
        sizes[path.relative_to(folder).parts[0]] += path.stat().st_size if path.is_file() else 0
    sizes["subnets"] *= num_chosen(recipe)
    return 2 * sum(sizes.values()) + 2000 * recipe.search.evaluations
