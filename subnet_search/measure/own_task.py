"""Sub-nets measured by a function of the user's own: any task, also where the supernet is part of a larger network."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from search_spaces import COST_NAMES, InvalidInput, SubnetConfig, SubnetSearchError, nearest_names
from subnet_search.elastic.statistics import Statistics, recalibrate
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure.metrics import describe_function
from subnet_search.modes import evaluation_mode
from subnet_search.record import Evaluation, Objective, check_objectives

Found = Mapping[str, float] | float


class TaskEvaluator:
    """What `measure` says about the active sub-net, and costs in closed form; nothing in the supernet changes.

    For what `make_evaluator` cannot measure: answers that are no logits, inputs that are no single tensor, and
    supernets that are a part of a larger network, such as the backbone of a detector.

    Args:
        supernet: works where it lives.
        measure: is given the supernet in evaluation mode with the sub-net active and calibrated, and no gradients
            kept; returns the value of the one objective that is no cost, or a dict of the values of several.
        objectives: names of costs, and `Objective`s, those with `exact` values included.
        calibration: unaugmented training inputs, as `recalibrate` takes them; needed if the supernet has batch norm.
        whole: the network that the supernet is a part of, if any; put into evaluation mode too.
        context: names the data and all else that `measure` depends on, for the record of a run; the weights and the
            source of `measure` are part of it anyway.

    Attributes:
        objectives, context: what a search asks for.

    Raises:
        InvalidInput: an unknown objective, or no calibration batches although there is batch norm.
    """

    def __init__(
        self,
        supernet: Supernet,
        measure: Callable[[Supernet], Found],
        objectives: Sequence[str | Objective],
        *,
        calibration: Iterable[Any] = (),
        whole: nn.Module | None = None,
        context: str = "",
    ) -> None:
        self.objectives = check_objectives([_objective(given, supernet) for given in objectives])
        self._supernet, self._measure, self._whole = supernet, measure, whole or supernet
        self._calibration = list(calibration)
        if supernet.uses_batch_norm and not self._calibration:
            raise InvalidInput(
                "sub-nets of this supernet need batch-norm statistics of their own, got no calibration batches; give "
                "calibration=[...], some batches of training inputs"
            )
        self._measured = [objective.name for objective in self.objectives if objective.exact is None]
        if not self._measured:
            raise InvalidInput(
                "all objectives are costs, got none that measure= could tell; add an Objective"
            )
        self.context = self._checksum(context)
        self._weights = self._version()

    def __call__(self, config: SubnetConfig) -> Evaluation:
        """Measures one sub-net.

        Raises:
            InvalidInput: weights changed since the evaluator was made.
            SubnetSearchError: `measure` does not return a finite number for each objective.
        """
        supernet = self._supernet
        config = supernet.space.canonical(config)
        found = self._found(config)
        row = supernet.space.encode([config])
        values = [found[o.name] if o.exact is None else float(o.exact(row)[0]) for o in self.objectives]
        return Evaluation(config, tuple(values))

    def statistics_of(self, config: SubnetConfig) -> Statistics:
        """The batch-norm statistics of a sub-net on the calibration inputs."""
        if self._version() != self._weights:
            raise InvalidInput(
                "weights changed since this evaluator was made (training, reorder, loading), so its context is of "
                "another net; make a new one"
            )
        with evaluation_mode(self._whole):
            return recalibrate(self._supernet, config, self._calibration)

    def _found(self, config: SubnetConfig) -> Mapping[str, float]:
        supernet, statistics = self._supernet, self.statistics_of(config)
        with evaluation_mode(self._whole, supernet), torch.no_grad(), supernet.subnet(config, statistics):
            found = self._measure(supernet)
        named = found if isinstance(found, Mapping) else dict.fromkeys(self._measured[:1], found)
        if named.keys() != set(self._measured):
            raise SubnetSearchError(
                f"measure must return a value for each of {', '.join(self._measured)}, got {', '.join(named)}"
                f"{'' if isinstance(found, Mapping) else ' alone; return a dict'}"
            )
        values = {name: float(value) for name, value in named.items()}
        if broken := [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]:
            raise SubnetSearchError(f"measure must return finite numbers, got {broken[0]}")
        return values

    def _version(self) -> list[tuple[int, int]]:
        return [(id(parameter), parameter._version) for parameter in self._whole.parameters()]

    def _checksum(self, context: str) -> str:
        measured = [(o.name, o.goal) for o in self.objectives if o.exact is None]
        digest = hashlib.sha256(repr((context, describe_function(self._measure), measured)).encode())
        state = sorted(self._whole.state_dict().items())
        for name, tensor in (*state, *enumerate(tree_leaves(self._calibration))):
            if isinstance(tensor, torch.Tensor):
                plain = tensor.detach().cpu().contiguous()
                digest.update(repr((name, plain.dtype, tuple(plain.shape))).encode())
                digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]


def _objective(given: str | Objective, supernet: Supernet) -> Objective:
    if isinstance(given, Objective):
        if given.function is not None:
            raise InvalidInput(
                f"objective {given.name!r} has function=, which is a metric of logits; let measure= return its value"
            )
        return given
    if given not in COST_NAMES:
        raise InvalidInput(
            f"a name must be one of the costs {', '.join(COST_NAMES)}, got {given!r}"
            f'{nearest_names(given, COST_NAMES)}; give Objective({given!r}, "max") for what measure= returns'
        )
    return Objective(given, "min", getattr(supernet.costs, given))
