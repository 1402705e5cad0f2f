from __future__ import annotations

import functools
import math
import re
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from search_spaces import InvalidInput, SubnetSearchError
from subnet_search.measure.metrics import check_metrics, describe_function, load_metrics, metric_value
from subnet_search.record import Objective
from subnet_search.settings import MetricSettings

LOGITS = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0]])
TARGETS = torch.tensor([0, 1, 1])


def recall(logits: Tensor, targets: Tensor, *, of: int = 1) -> float:
    right = logits.argmax(dim=1)[targets == of] == of
    return 100 * float(right.float().mean())


def metric(function: Callable[[Any, Any], Any], name: str = "mine") -> Objective:
    return Objective(name, "max", function=function)


@pytest.mark.parametrize(
    "result", [0.5, 1, True, np.float32(0.5), np.array([0.5]), torch.tensor(0.5), torch.ones(1, 1)]
)
def test_a_metric_may_return_any_single_number(result: Any) -> None:
    found = metric_value(metric(lambda logits, targets: result), LOGITS, TARGETS)
    assert type(found) is float
    assert found == float(np.asarray(result).item())


def test_a_metric_sees_logits_and_targets_and_cannot_spoil_them() -> None:
    def spoils(logits: Tensor, targets: Tensor) -> Tensor:
        value = torch.nn.functional.cross_entropy(logits.requires_grad_(), targets)
        logits.data.zero_()
        targets.zero_()
        return value.detach()

    with torch.inference_mode():
        logits = LOGITS.clone()
    found = metric_value(metric(spoils), logits, TARGETS)
    assert found == pytest.approx(float(torch.nn.functional.cross_entropy(LOGITS, TARGETS)))
    assert torch.equal(logits, LOGITS)
    assert metric_value(metric(recall), logits, TARGETS) == 50.0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda logits, targets: math.nan, "metric 'mine' must be a finite number, got nan"),
        (lambda logits, targets: torch.tensor(math.inf), "must be a finite number, got inf"),
        (lambda logits, targets: logits[:, 0], r"must return one number, got Tensor of shape \[3\]"),
        (lambda logits, targets: np.zeros((2, 2)), r"must return one number, got ndarray of shape \[2, 2\]"),
        (lambda logits, targets: None, "must return one number, got NoneType"),
        (lambda logits, targets: "93.0", "must return one number, got str"),
        (lambda logits, targets: {"f1": 1.0}, "must return one number, got dict"),
        (lambda logits, targets: 1 / 0, "metric 'mine' fails: ZeroDivisionError: division by zero"),
        (lambda logits, targets: sys.exit(3), "metric 'mine' fails: SystemExit: 3"),
        (lambda logits: 1.0, "metric 'mine' fails: TypeError"),
    ],
)
def test_what_is_no_finite_number_is_an_error_that_names_the_metric(
    function: Callable[..., Any], message: str
) -> None:
    with pytest.raises(SubnetSearchError, match=message):
        metric_value(metric(function), LOGITS, TARGETS)


def test_a_broken_metric_is_refused_on_trial_but_nan_by_chance_is_not() -> None:
    check_metrics({"a": metric(recall), "b": metric(lambda logits, targets: math.nan)}, TARGETS, 2)

    def confused(logits: Tensor, targets: Tensor) -> float:
        raise RuntimeError(f"shapes {list(logits.shape)}, {list(targets.shape)}")

    said = "tried on random logits [3, 7]: metric 'mine' fails: RuntimeError: shapes [3, 7], [3]"
    with pytest.raises(InvalidInput, match=re.escape(said)):
        check_metrics({"mine": metric(confused)}, TARGETS, 7)


def test_metrics_are_loaded_by_name_with_their_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("metrics_of_mine")
    module.recall = recall  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "metrics_of_mine", module)
    found = load_metrics({"r1": MetricSettings(function="metrics_of_mine:recall", goal="max")})
    assert found == {"r1": Objective("r1", "max", function=recall)}
    with pytest.raises(InvalidInput, match="has no callable 'recal'; did you mean 'recall'"):
        load_metrics({"r1": MetricSettings(function="metrics_of_mine:recal", goal="max")})
    with pytest.raises(InvalidInput, match="the metric r1 'no_such_module:f' cannot be imported"):
        load_metrics({"r1": MetricSettings(function="no_such_module:f", goal="max")})


class Share:
    def __call__(self, logits: Tensor, targets: Tensor) -> float:
        return 0.0


def test_functions_are_told_apart_by_name_source_and_options() -> None:
    functions = [
        recall,
        functools.partial(recall, of=0),
        functools.partial(recall, of=1),
        Share(),
        lambda logits, targets: 1.0,
        lambda logits, targets: 2.0,
        len,
    ]
    described = [describe_function(function) for function in functions]
    assert len(set(described)) == len(functions)
    assert [describe_function(function) for function in functions] == described
    namespaces: list[dict[str, Any]] = [{"__name__": "m"}, {"__name__": "m"}]
    for namespace in namespaces:
        exec("def f(logits, targets): return 1.0", namespace)
    assert describe_function(namespaces[0]["f"]) == describe_function(namespaces[1]["f"])
