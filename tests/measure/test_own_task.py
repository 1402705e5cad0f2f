from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from search_spaces import InvalidInput, SubnetSearchError
from subnet_search.elastic.extraction import extract
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure import TaskEvaluator, top1_percent
from subnet_search.record import Objective
from subnet_search.searchers import Evaluator
from tests.contracts.evaluator import EvaluatorContract
from tests.small import small_data, small_net, small_splits, small_supernet

MINE = Objective("mine", "max")
CALIBRATION = [small_data(40, seed=1)]


def accuracy(net: nn.Module) -> float:
    return top1_percent(net, small_splits().search_val)


def make(supernet: Supernet, measure: Any = accuracy, **changes: Any) -> TaskEvaluator:
    return TaskEvaluator(supernet, measure, (MINE, "macs"), **{"calibration": CALIBRATION, **changes})


class TestTaskEvaluator(EvaluatorContract):
    def make(self, supernet: Supernet) -> Evaluator:
        return make(supernet)


def test_the_value_is_that_of_the_extracted_net_and_the_cost_that_of_the_table() -> None:
    supernet = small_supernet()
    evaluator, config = make(supernet), supernet.space.uniform(0.5)
    net = extract(supernet, config, statistics=evaluator.statistics_of(config))
    macs = float(supernet.costs.macs(supernet.space.encode([config]))[0])
    assert evaluator(config).values == (accuracy(net), macs)


def test_the_network_around_the_supernet_is_in_evaluation_mode_while_it_is_measured() -> None:
    supernet = small_supernet()
    whole = nn.Sequential(supernet, nn.Dropout(0.9)).train()

    def mean_answer(net: nn.Module) -> float:
        assert not any(module.training for module in whole.modules())
        assert not torch.is_grad_enabled()
        return float(whole(CALIBRATION[0][0]).mean())

    evaluator = make(supernet, mean_answer, whole=whole)
    assert evaluator(supernet.space.smallest()) == evaluator(supernet.space.smallest())
    assert all(module.training for module in whole.modules())


def test_the_context_names_data_measure_and_the_network_around() -> None:
    supernet = small_supernet()

    def other(net: nn.Module) -> float:
        return 0.0

    def around(seed: int) -> nn.Module:
        return nn.ModuleList([supernet, small_net(seed)])

    contexts = [
        make(supernet).context,
        make(supernet, other).context,
        make(supernet, context="val, 2026").context,
        make(supernet, calibration=[small_data(40, seed=7)]).context,
        make(supernet, whole=around(1)).context,
        make(supernet, whole=around(2)).context,
    ]
    assert len(set(contexts)) == len(contexts)


def test_several_values_come_back_by_name() -> None:
    supernet = small_supernet()
    objectives = ("params", Objective("a", "min"), Objective("b", "max"))
    evaluator = TaskEvaluator(supernet, lambda net: {"b": 2, "a": 1}, objectives, calibration=CALIBRATION)
    assert evaluator(supernet.space.largest()).values[1:] == (1.0, 2.0)


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda net: math.nan, r"finite numbers, got mine = nan"),
        (lambda net: {"yours": 1.0}, "a value for each of mine, got yours"),
    ],
)
def test_values_that_mean_nothing_are_errors(measure: Any, message: str) -> None:
    supernet = small_supernet()
    with pytest.raises(SubnetSearchError, match=message):
        make(supernet, measure)(supernet.space.smallest())


def test_one_value_for_two_objectives_is_refused_with_the_way_out() -> None:
    supernet = small_supernet()
    objectives = (MINE, Objective("more", "max"))
    evaluator = TaskEvaluator(supernet, accuracy, objectives, calibration=CALIBRATION)
    with pytest.raises(SubnetSearchError, match="each of mine, more, got mine alone; return a dict"):
        evaluator(supernet.space.smallest())


def test_what_cannot_be_measured_is_refused_at_once() -> None:
    supernet = small_supernet()
    refused = {
        "no calibration batches": lambda: make(supernet, calibration=()),
        "all objectives are costs": lambda: TaskEvaluator(
            supernet, accuracy, ("macs",), calibration=CALIBRATION
        ),
        r"got 'mcas'; did you mean 'macs'": lambda: TaskEvaluator(supernet, accuracy, ("mcas",)),
        "function=, which is a metric of logits": lambda: TaskEvaluator(
            supernet, accuracy, (Objective("mine", "max", function=lambda logits, targets: 0.0),)
        ),
    }
    for message, call in refused.items():
        with pytest.raises(InvalidInput, match=message):
            call()


def test_weights_that_changed_are_refused_those_of_the_network_around_included() -> None:
    supernet, head = small_supernet(), nn.Linear(2, 2)
    evaluator = make(supernet, whole=nn.ModuleList([supernet, head]))
    with torch.no_grad():
        head.weight.zero_()
    with pytest.raises(InvalidInput, match="weights changed since this evaluator was made"):
        evaluator(supernet.space.smallest())
