"""Measures sub-nets of one supernet on search-validation data."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor

from search_spaces import COST_NAMES, CostTable, InvalidInput, SubnetConfig, nearest_names
from subnet_search.batches import device_of, first_images, input_size, on_device, resolve_device
from subnet_search.data import Splits
from subnet_search.elastic.extraction import tensors_in
from subnet_search.elastic.statistics import Statistics, recalibrate
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure.accuracy import share_right
from subnet_search.measure.device import has_fast_bf16
from subnet_search.measure.latency import LatencyMeter
from subnet_search.measure.metrics import describe_function, load_metrics, metric_value
from subnet_search.measure.passes import SharedPasses
from subnet_search.measure.subnet_latency import SubnetLatency
from subnet_search.measure.timing import Latency
from subnet_search.record import Evaluation, Objective, Partial, check_objectives
from subnet_search.record.objective import Goal
from subnet_search.searchers.racing import check_raced, look_sizes
from subnet_search.seeding import derive_seed, kept_generators, start_epoch
from subnet_search.settings import LATENCY, OBJECTIVES, PREDICTED, DeviceSettings, EvaluateSettings

STATISTICS_KEPT = 64  # sub-nets whose statistics stay in memory
GOALS: dict[str, Goal] = {"top1_percent": "max", LATENCY: "min"}


def make_evaluator(
    supernet: Supernet,
    splits: Splits,
    objectives: Sequence[str | Objective] = ("top1_percent", "macs", "params"),
    settings: EvaluateSettings | None = None,
    *,
    latency: LatencyMeter | None = None,
) -> SupernetEvaluator:
    """An evaluator of the supernet's sub-nets: accuracy on `splits.search_val`, costs in closed form, latency.

    Args:
        supernet: works on the settings' device and comes back to its own after each measurement.
        splits: `search_val` and `calibration` are read; `test` never is.
        objectives: "top1_percent", "latency_ms", names of costs and of the settings' metrics, or `Objective`s with
            `exact` values or a `function` of logits and targets.
        settings: calibration images, device, seed, metrics.
        latency: measures "latency_ms"; by default beside the largest sub-net on the settings' device, one image a
            call.

    Raises:
        InvalidInput: an unknown objective, or data that do not fit the supernet.
    """
    if len(tensors_in(supernet.example)) > 1:
        raise InvalidInput(
            "this supernet takes several tensors, and make_evaluator reads logits of images; use TaskEvaluator with a "
            "function of your own"
        )
    settings = settings or EvaluateSettings()
    metrics = load_metrics(settings.metrics)
    resolved = tuple(_objective(objective, supernet.costs, metrics) for objective in objectives)
    return SupernetEvaluator(supernet, splits, check_objectives(resolved), settings, latency)


class SupernetEvaluator:
    """Recalibrates a sub-net's batch norms, then looks at its answers; nothing in the supernet changes.

    What it measures is repeatable, except for latencies: those of a second look differ within their interval, half of
    which is the evaluation's `spread`.
    """

    def __init__(
        self,
        supernet: Supernet,
        splits: Splits,
        objectives: tuple[Objective, ...],
        settings: EvaluateSettings,
        latency: LatencyMeter | None = None,
    ) -> None:
        self.objectives, self._seed = objectives, settings.seed
        self._supernet, self._device = supernet, resolve_device(settings.device)
        self._size = input_size(supernet.example)
        rounds = settings.precision == "bf16" or (
            settings.precision == "auto" and has_fast_bf16(self._device)
        )
        self._bf16 = rounds and all(p.dtype == torch.float32 for p in supernet.parameters())
        source = splits.train if splits.calibration is None else splits.calibration
        images = first_images(source, settings.calibration_images, settings.seed, self._size)
        self._calibration = [(x.to(self._device), y.to(self._device)) for x, y in images]
        with kept_generators():
            start_epoch(splits.search_val, settings.seed, 0)
            self._passes = SharedPasses(
                supernet,
                self._calibration,
                splits.search_val,
                device=self._device,
                memory_bytes=settings.memory_mib * 2**20,
                bf16=self._bf16,
                size=self._size,
            )
        self._statistics: OrderedDict[str, Statistics] = OrderedDict()
        self._latency: SubnetLatency | None = None
        if any(map(_is_timed, objectives)):
            self._latency = SubnetLatency(
                supernet, latency, profile=DeviceSettings(name=settings.device), seed=settings.seed
            )
        self.context = self._checksum(settings)
        self._weights = self._version()

    def __call__(self, config: SubnetConfig) -> Evaluation:
        """Measures one sub-net.

        Raises:
            InvalidInput: the supernet was trained or reordered since the evaluator was made.
            SubnetSearchError: its answers, or what a metric says about them, are not finite.
        """
        self._refuse_changed_weights()
        config = self._supernet.space.canonical(config)
        found = None if all(o.exact or _is_timed(o) for o in self.objectives) else self._answers(config)
        known, spread = self._without_answers(config)
        values = [
            value_of(objective, *found) if found and i not in known else known[i]
            for i, objective in enumerate(self.objectives)
        ]
        return Evaluation(config, tuple(values), spread=spread)

    def stages(self, config: SubnetConfig) -> Generator[Partial]:
        """The same, image by image: what is known after some of them, after more, and after all; see `race`.

        Images come in an order drawn from the settings' seed and the config, at random whatever their own order is.
        Images that are not kept in memory (`memory_mib`) come all at once. The sub-net stays active in the supernet
        until the last stage, or until the generator is closed.

        Raises:
            InvalidInput: an objective needs all answers; else as `__call__`.
        """
        check_raced(self.objectives)
        self._refuse_changed_weights()
        config = self._supernet.space.canonical(config)
        known, spread = self._without_answers(config)
        calibration = sum(map(len, self._passes.calibration))
        with closing(self._right_so_far(config)) as found:
            for images, right in found:
                top1 = 100.0 * float(right[images].mean())
                values = tuple(known.get(i, top1) for i in range(len(self.objectives)))
                yield Partial(right[images], images, len(right), calibration, values, spread)

    def _right_so_far(self, config: SubnetConfig) -> Generator[tuple[np.ndarray, np.ndarray]]:
        """After each stage the places of the images seen, in the order drawn, and which images were answered right."""
        if not self.in_stages:
            logits, targets = self._answers(config)
            yield np.arange(len(targets)), (logits.argmax(dim=1) == targets).numpy()
            return
        of = sum(len(targets) for _, targets in self._passes.images)
        order = np.random.default_rng(derive_seed(self._seed, "stages", config.key)).permutation(of)
        sizes = look_sizes(of)
        right = np.zeros(of, dtype=bool)
        parts = np.split(order, sizes[:-1])
        with closing(self._passes.in_parts(config, parts)) as found:
            for size, (places, logits, targets) in zip(sizes, found, strict=True):
                right[places] = (logits.argmax(dim=1) == targets).numpy()
                yield order[:size], right

    @property
    def in_stages(self) -> bool:
        """Whether images can be shown stage by stage, as they are in memory."""
        return isinstance(self._passes.images, list)

    def _without_answers(self, config: SubnetConfig) -> tuple[dict[int, float], tuple[float, ...] | None]:
        """The values of objectives that need no image, by their place; and the spread of all, if any has one."""
        row = self._supernet.space.encode([config])
        known, spread = dict[int, float](), [0.0] * len(self.objectives)
        for i, objective in enumerate(self.objectives):
            if objective.exact is not None:
                known[i] = float(objective.exact(row)[0])
            elif _is_timed(objective):
                latency = self.latency_of(config)
                known[i], spread[i] = latency.median_ms, latency.half_interval_ms
        return known, tuple(spread) if self._latency else None

    def _answers(self, config: SubnetConfig) -> tuple[Tensor, Tensor]:
        """Logits `[num_images, num_classes]` and targets `[num_images]` of a sub-net on search-validation."""
        logits, targets, _ = self._passes.answers(config)
        return logits, targets

    def latency_of(self, config: SubnetConfig) -> Latency:
        """The latency of a sub-net, extracted; that of the largest one is the reference's, known already."""
        assert self._latency is not None
        return self._latency.of(config)

    def statistics_of(self, config: SubnetConfig) -> Statistics:
        """The batch-norm statistics of a sub-net on the calibration images, in the supernet's own precision."""
        self._refuse_changed_weights()
        config = self._supernet.space.canonical(config)
        if config.key not in self._statistics:
            with on_device(self._device, self._supernet):
                found = recalibrate(self._supernet, config, self._passes.calibration)
            self._statistics[config.key] = statistics_on(device_of(self._supernet), found)
        if len(self._statistics) > STATISTICS_KEPT:
            self._statistics.popitem(last=False)
        return self._statistics[config.key]

    def _version(self) -> list[tuple[int, int]]:
        """Changes with every write to a weight; moving the supernet to another device does not count."""
        return [(id(parameter), parameter._version) for parameter in self._supernet.parameters()]

    def _refuse_changed_weights(self) -> None:
        if self._version() != self._weights:
            raise InvalidInput(
                "the supernet's weights changed since this evaluator was made (training, reorder, loading), so its "
                "statistics and its context are of another net; call make_evaluator again"
            )

    def _checksum(self, settings: EvaluateSettings) -> str:
        """Of weights, calibration images, search-validation data, metrics, and what a latency depends on."""
        precision = "bf16, calibration too" if self._bf16 else "fp32"
        protocol = {
            "calibration_images": settings.calibration_images,
            "seed": settings.seed,
            "precision": precision,
        }
        digest = hashlib.sha256(repr(protocol).encode())
        for objective in self.objectives:
            if objective.function is not None:
                digest.update(repr((objective.name, describe_function(objective.function))).encode())
            elif objective.name == PREDICTED and objective.exact is not None:
                space = self._supernet.space
                ends = objective.exact(space.encode([space.largest(), space.smallest()]))
                digest.update(" ".join(f"{ms:.4g}" for ms in ends).encode())
        if self._latency is not None:
            digest.update(repr(self._latency.profile).encode())
        for name, tensor in sorted(self._supernet.state_dict().items()):
            digest.update(name.encode())
            _add(digest, [tensor])
        with kept_generators():
            start_epoch(self._passes.images, settings.seed, 0)
            for batches in (self._calibration, self._passes.images):
                _add(digest, (part for batch in batches for part in batch))
        return digest.hexdigest()[:16]


def statistics_on(device: torch.device, statistics: Statistics) -> Statistics:
    """The same statistics on `device`."""
    return Statistics(statistics.config_key, {name: t.to(device) for name, t in statistics.values.items()})


def _add(digest: Any, tensors: Iterable[Tensor]) -> None:
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        digest.update(repr((plain.dtype, tuple(plain.shape))).encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)


def value_of(objective: Objective, logits: Tensor, targets: Tensor) -> float:
    """Top-1 in percent, or the value of a metric, of logits `[num_images, num_classes]` and targets `[num_images]`."""
    return (
        share_right(logits, targets)
        if objective.function is None
        else metric_value(objective, logits, targets)
    )


def _is_timed(objective: Objective) -> bool:
    return objective.name == LATENCY and objective.exact is None


def _objective(objective: str | Objective, costs: CostTable, metrics: Mapping[str, Objective]) -> Objective:
    if isinstance(objective, Objective):
        return _of_ones_own(objective)
    if objective in metrics:
        return metrics[objective]
    if objective not in OBJECTIVES:
        known = (*OBJECTIVES, *metrics)
        raise InvalidInput(
            f"unknown objective {objective!r}{nearest_names(objective, known)}; known are {', '.join(known)}"
        )
    if objective == PREDICTED:
        raise InvalidInput(
            f"{PREDICTED} is of a board: give predicted_latency(run, board) of subnet_search.kit_boards"
        )
    exact = getattr(costs, objective) if objective in COST_NAMES else None
    return Objective(objective, GOALS.get(objective, "min"), exact)


def _of_ones_own(objective: Objective) -> Objective:
    """Refuses what cannot be measured, and another function under a name that means something already."""
    name, own = objective.name, objective.exact is not None
    if objective.function is not None and name in OBJECTIVES:
        raise InvalidInput(
            f"a metric may not be named {name!r}: that is measured already; choose another name"
        )
    if objective.function is None and not own and name not in ("top1_percent", LATENCY):
        raise InvalidInput(
            f"objective {name!r} needs exact=... or function=...; without, an evaluator measures "
            f"top1_percent and {LATENCY}"
        )
    if not own and objective.goal != GOALS.get(name, objective.goal):
        raise InvalidInput(f'the goal of {name!r} is "{GOALS[name]}", got "{objective.goal}"')
    return objective
