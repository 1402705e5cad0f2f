"""What a search wants, and what one evaluation of a sub-net found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from search_spaces import InvalidInput, SubnetConfig

from .images import Images

Goal = Literal["min", "max"]
Status = Literal["ok", "failed"]
Source = Literal["measured", "predicted", "table"]


@dataclass(frozen=True, slots=True)
class Objective:
    """One number to make small or large; its name ends in its unit: "latency_ms", "macs", "top1_percent".

    Attributes:
        name: the column in journal, front and report.
        goal: "min" or "max".
        exact: for objectives known in closed form: encoded configs `[num_configs, num_knobs]` to values
            `[num_configs]`; None when only an evaluation tells.
        function: for metrics of your own: logits `[num_images, num_classes]` and targets `[num_images]`, tensors
            on the CPU, to one number.

    Raises:
        InvalidInput: for an empty name, an unknown goal, or both `exact` and `function`.
    """

    name: str
    goal: Goal
    exact: Callable[[np.ndarray], np.ndarray] | None = None
    function: Callable[[Any, Any], Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InvalidInput(f"the name of an objective must be a non-empty text, got {self.name!r}")
        if self.goal not in get_args(Goal):
            raise InvalidInput(f'the goal of {self.name!r} must be "min" or "max", got {self.goal!r}')
        if self.exact is not None and self.function is not None:
            raise InvalidInput(f"objective {self.name!r} may have exact= or function=, got both; give one")

    def loss(self, value: float) -> float:
        """`value` with the sign that makes smaller better."""
        return value if self.goal == "min" else -value

    def meets(self, value: float, bound: float) -> bool:
        """Whether `value` is at least as good as `bound`: `<=` for "min", `>=` for "max"."""
        return self.loss(value) <= self.loss(bound)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was found out about one sub-net.

    Attributes:
        config: the canonical config.
        values: one finite number per objective, in the objectives' order; `()` when failed.
        status: "ok" or "failed".
        reason: why it failed, or was stopped.
        source: "measured", "predicted" or "table".
        spread: one non-negative number per value (for example a standard error), or None.
        images: which ones it cost, where that is counted; one that was stopped before it saw all is "ok" and
            "predicted": its values are estimates, with their spread, and it can be no member of a front.

    Raises:
        InvalidInput: for values that are missing, NaN or infinite although the evaluation is "ok", or that are said
            to be measured although it was stopped.
    """

    config: SubnetConfig
    values: tuple[float, ...]
    status: Status = "ok"
    reason: str = ""
    source: Source = "measured"
    spread: tuple[float, ...] | None = None
    images: Images | None = None

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            raise InvalidInput(f'the status of an evaluation must be "ok" or "failed", got {self.status!r}')
        if self.source not in get_args(Source):
            allowed = ", ".join(get_args(Source))
            raise InvalidInput(f"the source of an evaluation must be one of {allowed}, got {self.source!r}")
        object.__setattr__(self, "values", _numbers(self.values, "values"))
        if self.ok and not (self.values and all(map(math.isfinite, self.values))):
            raise InvalidInput(
                f"an evaluation that is ok needs finite values, got {self.values} for {self.config.key}; "
                'give status="failed" and a reason instead'
            )
        if self.spread is not None:
            object.__setattr__(self, "spread", _numbers(self.spread, "spread"))
            if len(self.spread) != len(self.values) or not all(0 <= s < math.inf for s in self.spread):
                raise InvalidInput(
                    f"spread must hold one finite number >= 0 for each value, got {self.spread}"
                )
        if not self.in_full and self.source != "predicted":
            raise InvalidInput(
                f'an evaluation that was stopped has source="predicted", got {self.source!r} for {self.config.key}'
            )

    @property
    def ok(self) -> bool:
        """Whether there are values to compare."""
        return self.status == "ok"

    @property
    def in_full(self) -> bool:
        """Whether it saw all images; False where it was stopped."""
        return self.images is None or self.images.in_full


def check_objectives(objectives: Any) -> tuple[Objective, ...]:
    """Returns the objectives as a tuple; `InvalidInput` when empty, unordered or with a name twice."""
    if isinstance(objectives, (set, frozenset)):
        raise InvalidInput(f"objectives need an order, got a set: {objectives}; give a tuple")
    checked: tuple[Objective, ...] = tuple(objectives)
    if wrong := [o for o in checked if not isinstance(o, Objective)]:
        raise InvalidInput(f"objectives must be Objective(name, goal), got {wrong[0]!r}")
    names = [o.name for o in checked]
    if not names or len(set(names)) < len(names):
        raise InvalidInput(f"objectives must be at least one, each name once, got {names}")
    return checked


def _numbers(values: Any, what: str) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{what} of an evaluation must be a tuple of numbers, got {values!r}") from error


def check_values(objectives: Sequence[Objective], evaluation: Evaluation) -> None:
    """Raises `InvalidInput` unless a successful evaluation has one value for each objective."""
    if evaluation.ok and len(evaluation.values) != len(objectives):
        names = [objective.name for objective in objectives]
        raise InvalidInput(f"an evaluation needs one value for each of {names}, got {evaluation.values}")
