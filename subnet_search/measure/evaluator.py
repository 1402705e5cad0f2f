"""Measures sub-nets of one supernet on search-validation data."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from search_spaces import InvalidInput, SubnetConfig, nearest_names
from search_spaces.costs import COST_NAMES
from subnet_search.batches import device_of, first_images, input_size, on_device, resolve_device
from subnet_search.data import Splits
from subnet_search.elastic.statistics import Statistics, recalibrate
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure.accuracy import top1_percent
from subnet_search.record import Evaluation, Objective
from subnet_search.seeding import kept_generators, start_epoch
from subnet_search.settings import EvaluateSettings

STATISTICS_KEPT = 64  # sub-nets whose statistics stay in memory


def make_evaluator(
    supernet: Supernet,
    splits: Splits,
    objectives: Sequence[str | Objective] = ("top1_percent", "macs", "params"),
    settings: EvaluateSettings | None = None,
) -> SupernetEvaluator:
    """An evaluator of the supernet's sub-nets: accuracy on `splits.search_val`, costs in closed form.

    Args:
        supernet: works on the settings' device and comes back to its own after each measurement.
        splits: `search_val` and `calibration` are read; `test` never is.
        objectives: "top1_percent", names of costs, or `Objective`s with `exact` values.
        settings: calibration images, device, seed.

    Raises:
        InvalidInput: an unknown objective, or data that do not fit the supernet.
    """
    resolved = tuple(_objective(supernet, objective) for objective in objectives)
    return SupernetEvaluator(supernet, splits, resolved, settings or EvaluateSettings())


class SupernetEvaluator:
    """Recalibrates a sub-net's batch norms, then counts right answers; nothing in the supernet changes."""

    def __init__(
        self,
        supernet: Supernet,
        splits: Splits,
        objectives: tuple[Objective, ...],
        settings: EvaluateSettings,
    ) -> None:
        self.objectives = objectives
        self._supernet, self._device = supernet, resolve_device(settings.device)
        self._search_val = splits.search_val
        self._size = input_size(supernet.example)
        source = splits.train if splits.calibration is None else splits.calibration
        images = first_images(source, settings.calibration_images, settings.seed, self._size)
        self._calibration = [(x.to(self._device), y.to(self._device)) for x, y in images]
        self._statistics: OrderedDict[str, Statistics] = OrderedDict()
        self.context = self._checksum(settings)
        self._weights = self._version()

    def __call__(self, config: SubnetConfig) -> Evaluation:
        """Measures one sub-net.

        Raises:
            InvalidInput: the supernet was trained or reordered since the evaluator was made.
            SubnetSearchError: its answers are not finite.
        """
        self._refuse_changed_weights()
        supernet, config = self._supernet, self._supernet.space.canonical(config)
        row = supernet.space.encode([config])
        values = []
        for objective in self.objectives:
            if objective.exact is not None:
                values.append(float(objective.exact(row)[0]))
            else:
                values.append(self._top1_percent(config))
        return Evaluation(config, tuple(values))

    def _top1_percent(self, config: SubnetConfig) -> float:
        supernet, statistics = self._supernet, statistics_on(self._device, self.statistics_of(config))
        with on_device(self._device, supernet), supernet.subnet(config, statistics):
            return top1_percent(supernet, self._search_val, self._size)

    def statistics_of(self, config: SubnetConfig) -> Statistics:
        """The batch-norm statistics of a sub-net on the calibration images."""
        self._refuse_changed_weights()
        config = self._supernet.space.canonical(config)
        if config.key not in self._statistics:
            home = device_of(self._supernet)
            with on_device(self._device, self._supernet):
                found = recalibrate(self._supernet, config, self._calibration)
            self._statistics[config.key] = statistics_on(home, found)
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
        """Of weights, calibration images, search-validation data and protocol."""
        digest = hashlib.sha256(repr(settings.model_dump(exclude={"device"})).encode())
        for name, tensor in sorted(self._supernet.state_dict().items()):
            digest.update(name.encode())
            _add(digest, [tensor])
        with kept_generators():
            start_epoch(self._search_val, settings.seed, 0)
            for batches in (self._calibration, self._search_val):
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


def _objective(supernet: Supernet, objective: str | Objective) -> Objective:
    if isinstance(objective, Objective):
        if objective.exact is None and objective.name != "top1_percent":
            raise InvalidInput(
                f"objective {objective.name!r} needs exact=..., this evaluator measures top1_percent only"
            )
        return objective
    if objective == "top1_percent":
        return Objective("top1_percent", "max")
    if objective not in COST_NAMES:
        known = ("top1_percent", *COST_NAMES)
        raise InvalidInput(
            f"unknown objective {objective!r}{nearest_names(objective, known)}; known are {', '.join(known)}"
        )
    return Objective(objective, "min", exact=getattr(supernet.costs, objective))
