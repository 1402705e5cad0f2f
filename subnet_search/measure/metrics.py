"""Metrics of the user's own, beside top-1: functions of all logits and targets."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from search_spaces import InvalidInput, SubnetSearchError
from search_spaces.errors import in_words
from subnet_search.factories import import_callable
from subnet_search.record import Objective
from subnet_search.settings import MetricSettings


def load_metrics(settings: Mapping[str, MetricSettings]) -> dict[str, Objective]:
    """The objectives that a recipe's [evaluate.metrics] describe, by name.

    Raises:
        InvalidInput: a function cannot be imported.
    """
    return {
        name: Objective(name, metric.goal, function=import_callable(metric.function, f"metric {name}"))
        for name, metric in settings.items()
    }


def metric_value(metric: Objective, logits: Tensor, targets: Tensor) -> float:
    """Calls the function of `metric` with copies of its own.

    Args:
        metric: has a `function`; a number, a numpy scalar or a tensor of one element may come back.
        logits: `[num_images, num_classes]`, on the CPU.
        targets: `[num_images]`, on the CPU.

    Raises:
        SubnetSearchError: the function raises, or what comes back is no finite number.
    """
    value = _called(metric, logits, targets)
    if not math.isfinite(value):
        raise SubnetSearchError(f"metric {metric.name!r} must be a finite number, got {value}")
    return value


def check_metrics(metrics: Mapping[str, Objective], targets: Tensor, num_classes: int) -> None:
    """Calls every metric once on random logits, so that a broken one is refused before hours of work.

    That it is NaN there is no fault: chance may leave a class without any answer.

    Args:
        metrics: as `load_metrics` gives them.
        targets: `[num_images]`, those that will be asked about.
        num_classes: how many logits there are for each image.

    Raises:
        InvalidInput: one raises, or what comes back is no number.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(targets), num_classes, generator=generator)
    for metric in metrics.values():
        try:
            _called(metric, logits, targets)
        except SubnetSearchError as error:
            raise InvalidInput(f"tried on random logits {list(logits.shape)}: {error}") from error


def describe_function(function: Callable[..., Any]) -> str:
    """Name and source of a function as text; the source is missing where Python does not know it."""
    plain: Any = getattr(function, "func", function)  # of a functools.partial
    named = plain if hasattr(plain, "__qualname__") else type(plain)
    try:
        source = inspect.getsource(named)
    except (OSError, TypeError):  # made by exec, or not written in Python
        source = ""
    options = [repr(getattr(function, name, ())) for name in ("args", "keywords")]
    digest = hashlib.sha256("\n".join([source, *options]).encode()).hexdigest()
    return f"{named.__module__}.{named.__qualname__} {digest[:16]}"


def _called(metric: Objective, logits: Tensor, targets: Tensor) -> float:
    assert metric.function is not None
    try:
        found = metric.function(logits.clone(), targets.clone())
    except (Exception, SystemExit) as error:  # the user's code runs here: anything can come
        raise SubnetSearchError(f"metric {metric.name!r} fails: {in_words(error)}") from error
    if hasattr(found, "item") and math.prod(getattr(found, "shape", (1,))) == 1:
        found = found.item()  # a tensor or numpy value of one element
    if not isinstance(found, Real):
        shape = f" of shape {list(found.shape)}" if hasattr(found, "shape") else ""
        raise SubnetSearchError(
            f"metric {metric.name!r} must return one number, got {type(found).__name__}{shape}"
        )
    return float(found)
