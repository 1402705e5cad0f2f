"""What the stages of one run work with: data, network and supernet, each made when it is first needed."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from search_spaces import CostTable, InvalidInput, SearchSpace, SubnetConfig, check_limits
from search_spaces.costs import COST_NAMES
from search_spaces.files import config_from_json, costs_from_json, costs_to_json, space_from_json
from subnet_search.batches import check_class_numbers, device_of, first_images, resolve_device
from subnet_search.data import (
    Batch,
    Splits,
    changed,
    check_files,
    check_network,
    checksums,
    load_splits,
)
from subnet_search.elastic import Statistics, Supernet, extract, make_elastic
from subnet_search.elastic.extraction import cut_out
from subnet_search.elastic.statistics import load_statistics, save_statistics
from subnet_search.exporting import check_formats
from subnet_search.kit_boards import is_known, latency_in_search
from subnet_search.measure import (
    LatencyMeter,
    SubnetLatency,
    SupernetEvaluator,
    load_metrics,
    make_evaluator,
)
from subnet_search.measure.runtimes import check_runtime
from subnet_search.measure.subnet_latency import BETWEEN_NEIGHBOURS
from subnet_search.measuring import open_meter, values_on
from subnet_search.memory import keep_freed_memory
from subnet_search.models import load_model, load_weights
from subnet_search.path_files import read_path
from subnet_search.planning import Plan, wanted
from subnet_search.ranking import NoiseLevels, levels_from_json, predicted_increase
from subnet_search.recipe import Recipe, walks_a_path
from subnet_search.record import Objective, Run
from subnet_search.searchers import Claims, Workers, reselect
from subnet_search.settings import LATENCY, PREDICTED
from subnet_search.standing import JOINED, begun_epochs, chosen_keys

Say = Callable[[str], None]

LOOKED_AT = 4000  # random sub-nets whose time on a board is foretold
NEAR = 0.9  # of the fastest net looked at: another one may be a little faster


class Workbench:
    """One run's recipe, and lazily what follows from it and from the files that are there already."""

    def __init__(self, run: Run, recipe: Recipe, say: Say, *, leads: bool = True) -> None:
        self.run, self.recipe, self.say = run, recipe, say
        self.claims: Claims | None = None  # on a study that other drivers search too
        self.leads = leads  # one of several ranks that train together writes
        self.workers = Workers()  # who evaluate and fine-tune
        self.trials = 0  # of fine-tuning settings, before sub-nets are fine-tuned
        self.plan: Plan | None = None  # of the stages that have not begun, where time is short
        self.search_until_s: float | None = None  # on the clock `time.monotonic`

    def amount(self, stage: str) -> int:
        """Epochs of a stage, or evaluations of the search: as begun, else as planned, else as the recipe says."""
        begun = None if stage == "search" else begun_epochs(self.run, self.recipe).get(stage)
        if begun is not None:
            return begun[0]
        return (wanted(self.recipe) if self.plan is None else self.plan.amounts)[stage]

    @cached_property
    def splits(self) -> Splits:
        """The data; those that a prepared run began with."""
        splits = load_splits(self.recipe.data, self.recipe.model)
        if self._is_prepared("splits.json"):
            self._check_unchanged(splits)
        return splits

    def _is_prepared(self, name: str) -> bool:
        """Whether the first stage, whose last file is coverage.json, is done, and that file of it is there."""
        return self.run.has("coverage.json") and self.run.has(name)

    def _check_unchanged(self, splits: Splits) -> None:
        """Raises `InvalidInput` where splits have other members than before: what was trained on may be in test now."""
        before = self.run.read_json("splits.json").get("checksums")
        if before is None:  # runs of earlier versions do not tell
            return
        members, pixels = changed(before, checksums(splits))
        if members:
            raise InvalidInput(
                f"the data changed since run {self.run.folder} began: other images in {', '.join(members)}, so that "
                "images of training may be in test now. Restore the data, or begin a new run with --name"
            )
        if pixels:
            self.say(
                f"  the pixels in {', '.join(pixels)} changed since the run began: if these are other images, results "
                "are wrong; begin a new run with --name"
            )

    @cached_property
    def example(self) -> Tensor:
        """One image `[1, ...]` of the training data."""
        return self.calibration(1)[0][0]

    @property
    def device(self) -> torch.device:
        """Where sub-nets are measured."""
        return resolve_device(self.recipe.evaluate.device)

    def check_machine(self) -> None:
        """Raises `InvalidInput` when a device or an export format that the recipe asks for is not there."""
        recipe = self.recipe
        on_the_path = (recipe.progressive,) if walks_a_path(recipe) else ()
        for settings in (recipe.train, *on_the_path, recipe.evaluate, recipe.finetune):
            resolve_device(settings.device)
        check_formats(self.recipe.export.formats)
        check_runtime(recipe.device)

    def check_batches(self) -> None:
        """Raises `InvalidInput` unless the splits that are read before the end begin with batches of one size."""
        splits, size = self.splits, None
        check_files(splits)
        for name in ("train", "calibration", "search_val"):
            try:
                [(images, labels)] = first_images(getattr(splits, name), 1, self.recipe.data.seed, size)
                check_class_numbers(labels)
            except InvalidInput as error:
                raise InvalidInput(f"split {name!r}: {error}") from error
            except Exception as error:  # the user's code runs here: anything can come
                raise InvalidInput(
                    f"split {name!r} cannot be read: {type(error).__name__}: {error}; check the data source"
                ) from error
            size = images.shape[1:]

    def new_model(self) -> nn.Module:
        """The network with its own weights: those of the run once it has them, else those of the recipe."""
        settings = self.recipe.model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.train.seed)  # random weights, where no others are named
            weights = None if self.run.has("teacher.safetensors") else settings.weights
            model = load_model(settings.name, weights, dict(settings.options))
        if self.run.has("teacher.safetensors"):
            load_weights(model, self.run.verify("teacher.safetensors"))
        return model

    @cached_property
    def space(self) -> SearchSpace:
        """The space of the converted network."""
        return space_from_json(self.run.read_json("space.json"))

    @cached_property
    def costs(self) -> CostTable:
        """What its sub-nets cost."""
        return costs_from_json(self.run.read_json("costs.json"))

    def calibration(self, count: int) -> list[Batch]:
        """Batches of the first `count` training images without augmentation."""
        splits = self.splits
        source = splits.train if splits.calibration is None else splits.calibration
        return first_images(source, count, self.recipe.rank.seed)

    def new_supernet(self) -> Supernet:
        """The converted network, untrained."""
        model = self.new_model()
        if not self.run.has("space.json") and (note := check_network(model, self.example, self.splits)):
            self.say(f"  {note}")
        supernet = make_elastic(model, self.example, self.recipe.elastic)
        if self.run.has("space.json") and self.space != supernet.space:
            raise InvalidInput(
                f"run {self.run.folder} was made with another space than the recipe's model gives now; "
                "did its code or its settings change? Begin a new run with --name"
            )
        if self._is_prepared("costs.json") and costs_to_json(self.costs) != costs_to_json(supernet.costs):
            raise InvalidInput(
                f"run {self.run.folder} was made with other costs than the recipe's model and images have now; "
                "did its code or the size of the images change? Begin a new run with --name"
            )
        return supernet

    @property
    def is_structured(self) -> bool:
        """Whether the space is one of sub-paths or branches."""
        return self.recipe.elastic.is_structured

    def plain_supernet(self) -> Supernet:
        """The converted network for ordinary training, without sub-paths or branches."""
        if not self.is_structured:
            return self.new_supernet()
        settings = self.recipe.elastic.model_copy(update={"adaptive_depth": False, "branches": None})
        return make_elastic(self.new_model(), self.example, settings)

    def ranked_supernet(self) -> Supernet:
        """The converted network, untrained, its channels in ranked order."""
        supernet, ranking = self.new_supernet(), self.run.read_json("ranking.json")
        if ranking["weights"] != self.teacher_checksum():
            raise InvalidInput(
                f"ranking.json of run {self.run.folder} belongs to other weights than teacher.safetensors; "
                "delete ranking.json and resume"
            )
        supernet.reorder({name: torch.tensor(order) for name, order in ranking["order"].items()})
        return supernet

    @cached_property
    def supernet(self) -> Supernet:
        """The supernet that is searched: trained, and on a path trained jointly after that."""
        return self.trained_supernet(JOINED if walks_a_path(self.recipe) else "supernet.safetensors")

    def trained_supernet(self, name: str = "supernet.safetensors") -> Supernet:
        """A supernet with the weights in that file, which were stored in ranked order."""
        supernet = self.new_supernet()
        load_weights(supernet.model, self.run.verify(name))
        return supernet.eval()

    def path(self) -> list[SubnetConfig]:
        """The sub-nets of the path that was walked, or those that re-selection leaves."""
        path = read_path(self.run)
        return [element.config for element in (reselect(path) if self.recipe.progressive.reselect else path)]

    def noise_levels(self) -> NoiseLevels | None:
        """The levels that the rank stage learned, by unit in ranked order; None where the ranking is another."""
        ranking = self.run.read_json("ranking.json")
        if "levels" not in ranking:
            return None
        order = {name: torch.tensor(units) for name, units in ranking["order"].items()}
        return levels_from_json(ranking["levels"]).reordered(order)

    def prediction(self, supernet: Supernet) -> Callable[[SubnetConfig], float] | None:
        """What the noise levels say that sub-nets lose; None where the ranking is another."""
        levels = self.noise_levels()
        return None if levels is None else functools.partial(predicted_increase, levels, supernet)

    def path_latency(self, supernet: Supernet) -> SubnetLatency | None:
        """Times sub-nets of a path as [device] says; None where its criterion needs no time."""
        if self.recipe.progressive.criterion != "loss_per_ms":
            return None
        seed = self.recipe.progressive.seed
        return SubnetLatency(supernet, self.meter, seed=seed, protocol=BETWEEN_NEIGHBOURS)

    def save(self, name: str, net: nn.Module) -> None:
        """Writes trained weights into the run; ranks that only train along leave that to the one that leads."""
        if self.leads:
            save_weights(self.run, name, net)

    def teacher_checksum(self) -> str:
        """SHA-256 of the file with the full network's own weights, which are ranked."""
        return hashlib.sha256(self.run.read("teacher.safetensors")).hexdigest()

    @cached_property
    def evaluator(self) -> SupernetEvaluator:
        """Measures sub-nets of the trained supernet on search-validation."""
        asked, settings = self.recipe.search.objectives, self.recipe.evaluate
        meter = self.meter if self.times_nets else None
        objectives = [self.board_latency if name == PREDICTED else name for name in asked]
        return make_evaluator(self.supernet, self.splits, objectives, settings, latency=meter)

    @property
    def knows_board(self) -> bool:
        """Whether measurements of the recipe's board are there."""
        return is_known(self.run, str(self.recipe.device.board))

    @cached_property
    def board_latency(self) -> Objective:
        """What sub-nets are expected to take on the recipe's board."""
        return latency_in_search(self.run, str(self.recipe.device.board))

    @cached_property
    def metrics(self) -> dict[str, Objective]:
        """The recipe's own metrics, by name."""
        return load_metrics(self.recipe.evaluate.metrics)

    @property
    def times_nets(self) -> bool:
        """Whether latency counts in this run."""
        return LATENCY in self.recipe.search.objectives

    @cached_property
    def meter(self) -> LatencyMeter:
        """Times nets beside the whole network."""
        profile = self.recipe.device
        whole = self.new_model().to(self.device if profile.runtime in ("torch", "compile") else "cpu")
        return open_meter(self.run, whole, self.example, profile)

    def judge(self, net: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Top-1 and the recipe's metrics of a net on a split."""
        return values_on(net, batches, self.metrics, self.say)

    def limits(self, asked: Mapping[str, float | str]) -> dict[str, float]:
        """Limits as numbers; a percentage is a share of the largest net's value.

        Raises:
            InvalidInput: a percentage of something that is neither a cost nor latency, or limits that no sub-net
                meets.
        """
        space, costs = self.space, self.costs
        largest = costs.evaluate(space.encode([space.largest()]), COST_NAMES)
        known = dict.fromkeys((*COST_NAMES, *self.recipe.search.objectives))
        numbers: dict[str, float] = {}
        for name, bound in asked.items():
            if name not in known:
                raise InvalidInput(f"a limit must be on one of {', '.join(known)}, got {name!r}")
            if not isinstance(bound, str):
                numbers[name] = bound
            elif name in (LATENCY, PREDICTED, *COST_NAMES):
                if name == LATENCY:
                    whole = self.meter.reference.median_ms
                else:
                    whole = self._on_board([space.largest()]) if name == PREDICTED else largest[name][0]
                numbers[name] = float(bound.rstrip("% ")) / 100 * float(whole)
            else:
                raise InvalidInput(
                    f"a percentage must be of {', '.join((*COST_NAMES, LATENCY, PREDICTED))}, got {name} = {bound!r}"
                )
        check_limits(space, costs, {name: bound for name, bound in numbers.items() if name in COST_NAMES})
        if not 0 <= numbers.get("top1_percent", 0.0) <= 100:
            raise InvalidInput(
                f"a limit on top1_percent must be from 0 to 100, got {numbers['top1_percent']:g}"
            )
        return numbers

    def check_latency_limit(self, supernet: Supernet, limits: Mapping[str, float]) -> None:
        """Raises `InvalidInput` where not even the smallest sub-nets come near the limit on latency.

        Few channels more may be faster, where they make the hardware's step full: such nets are looked at, too.
        """
        if LATENCY not in limits:
            return
        least_ms = math.inf
        for config in smallest_nets(supernet.space):
            least_ms = min(least_ms, self.meter(cut_out(supernet, config).to(self.device)).median_ms)
        if limits[LATENCY] < NEAR * least_ms:
            raise InvalidInput(
                f"no sub-net has {LATENCY} <= {limits[LATENCY]:.3g}; the fastest possible takes {least_ms:.3g} ms "
                f"({self.meter.profile['runtime']}): raise the limit or let the space go smaller"
            )

    def check_board_limit(self, limits: Mapping[str, float]) -> None:
        """Raises `InvalidInput` where no sub-net that was looked at is expected to be near the limit on a board."""
        if PREDICTED not in limits:
            return
        some = self.space.sample(np.random.default_rng(0), LOOKED_AT)
        least_ms = self._on_board([*smallest_nets(self.space), *some])
        if limits[PREDICTED] < NEAR * least_ms:
            raise InvalidInput(
                f"no sub-net has {PREDICTED} <= {limits[PREDICTED]:.3g}; the fastest is expected to take "
                f"{least_ms:.3g} ms on board {self.recipe.device.board!r}: raise the limit or let the space go smaller"
            )

    def _on_board(self, configs: list[SubnetConfig]) -> float:
        """The least of the milliseconds that sub-nets are expected to take on the board."""
        assert self.board_latency.exact is not None
        return float(self.board_latency.exact(self.space.encode(configs)).min())

    def chosen(self) -> list[SubnetConfig]:
        """The configs that were chosen for fine-tuning, by key."""
        files = [f"subnets/{key}/config.json" for key in chosen_keys(self.run)]
        return [config_from_json(self.run.read_json(file)) for file in files]

    def statistics(self, config: SubnetConfig) -> Statistics:
        """The batch-norm statistics of a chosen sub-net, kept in the run."""
        name = f"statistics/{config.key}.safetensors"
        if not self.run.has(name):
            statistics = self.evaluator.statistics_of(config)
            with self.run.writing(name) as path:
                save_statistics(statistics, path)
        return load_statistics(self.run.verify(name))

    def extracted(self, config: SubnetConfig) -> nn.Module:
        """The sub-net by itself, as the supernet has it."""
        device = device_of(self.supernet)
        stored = self.statistics(config)
        statistics = Statistics(config.key, {name: t.to(device) for name, t in stored.values.items()})
        return extract(self.supernet, config, self.example.to(device), statistics)

    def tuned(self, config: SubnetConfig) -> nn.Module:
        """The sub-net by itself, fine-tuned."""
        net = self.extracted(config)
        load_weights(net, self.run.verify(f"subnets/{config.key}/net.safetensors"))
        return net


def smallest_nets(space: SearchSpace) -> list[SubnetConfig]:
    """The smallest sub-net, and those whose widths are its own raised to the next multiples of 8 and of 16."""
    smallest, found = space.smallest(), [space.smallest()]
    for step in (8, 16):
        raised = {
            knob.name: next(
                (c for c in knob.choices if c % step == 0 and c >= smallest[knob.name]), knob.largest
            )
            for knob in space.knobs
            if knob.kind == "width"
        }
        found.append(space.canonical(SubnetConfig({**smallest, **raised})))
    return list(dict.fromkeys(found))


def set_up_process(recipe: Recipe) -> None:
    """Memory and threads of this process, as its stages want them."""
    keep_freed_memory()
    if recipe.device.threads is not None:
        torch.set_num_threads(recipe.device.threads)


def save_weights(run: Run, name: str, net: nn.Module) -> None:
    """Writes the weights of `net` into the run, whole or not at all."""
    tensors = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in net.state_dict().items()}
    run.write(name, safetensors.torch.save(tensors))
