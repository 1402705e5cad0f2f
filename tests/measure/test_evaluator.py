from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from search_spaces import InvalidInput
from subnet_search.data import Splits, TensorBatches
from subnet_search.elastic.extraction import extract
from subnet_search.elastic.statistics import recalibrate
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure import (
    Latency,
    LatencyMeter,
    SupernetEvaluator,
    answers,
    count_macs,
    count_params,
    make_evaluator,
    top1_percent,
)
from subnet_search.record import Objective
from subnet_search.searchers import Budget, search
from subnet_search.settings import EvaluateSettings, MetricSettings
from tests.small import EXAMPLE, small_data, small_splits, small_supernet

SETTINGS = EvaluateSettings(calibration_images=40, device="cpu", precision="fp32")


class Forbidden:
    """A split that must not be read."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> object:
        raise AssertionError("this split may not be read")


def make(splits: Splits | None = None, **changes: object) -> SupernetEvaluator:
    settings = SETTINGS.model_copy(update=changes)
    return make_evaluator(small_supernet(), splits or small_splits(), settings=settings)


def test_the_values_are_those_of_the_extracted_net() -> None:
    supernet, splits = small_supernet(), small_splits()
    evaluator = make_evaluator(supernet, splits, settings=SETTINGS)
    config = supernet.space.uniform(0.5)
    images, labels = small_data(48, seed=1)
    batches = [(images[a:b], labels[a:b]) for a, b in ((0, 16), (16, 32), (32, 40))]  # 40 images, exactly
    net = extract(supernet, config, EXAMPLE, recalibrate(supernet, config, batches))
    wanted = (top1_percent(net, splits.search_val), count_macs(net, EXAMPLE), count_params(net))
    assert evaluator(config).values == wanted


def test_neither_test_nor_gate_is_ever_read() -> None:
    splits = dataclasses.replace(small_splits(), test=Forbidden(), gate=Forbidden())  # type: ignore[arg-type]
    make(splits)(small_supernet().space.smallest())


def test_without_a_calibration_split_training_batches_are_drawn_by_the_seed() -> None:
    splits = dataclasses.replace(small_splits(), calibration=None)
    config = small_supernet().space.smallest()
    first, again, other = (make(splits, seed=seed).statistics_of(config) for seed in (0, 0, 1))
    assert all(torch.equal(tensor, again.values[name]) for name, tensor in first.values.items())
    assert not all(torch.equal(tensor, other.values[name]) for name, tensor in first.values.items())


def test_statistics_of_chosen_subnets_are_exact_whatever_the_precision_of_the_search() -> None:
    evaluator, supernet = make(precision="bf16"), small_supernet()
    config = supernet.space.smallest()
    evaluator(config)
    alone = recalibrate(supernet, config, evaluator._passes.calibration)
    found = evaluator.statistics_of(config)
    assert all(torch.equal(tensor, found.values[name]) for name, tensor in alone.values.items())
    assert evaluator.statistics_of(config) is found


def test_auto_is_bf16_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from subnet_search.measure import evaluator as module

    contexts = {name: make(precision=name).context for name in ("fp32", "bf16")}
    assert contexts["fp32"] != contexts["bf16"]
    for fast, expected in ((False, "fp32"), (True, "bf16")):
        monkeypatch.setattr(module, "has_fast_bf16", lambda device, fast=fast: fast)
        assert make(precision="auto").context == contexts[expected]


def test_the_context_changes_with_data_and_protocol_but_not_with_the_device() -> None:
    other = dataclasses.replace(small_splits(), search_val=TensorBatches(*small_data(40, seed=8), 16))
    contexts = [
        make().context,
        make(other).context,
        make(calibration_images=20).context,
        make(seed=1).context,
    ]
    assert len(set(contexts)) == 4
    assert make(device="auto").context == make().context


def test_objectives_may_be_exact_functions_of_the_users_own() -> None:
    widths = Objective("width_sum", "min", exact=lambda x: x.sum(axis=1))
    supernet = small_supernet()
    evaluator = make_evaluator(supernet, small_splits(), (widths, "peak_activation_bytes"), SETTINGS)
    config = supernet.space.smallest()
    assert evaluator(config).values[0] == sum(config.values())
    assert [objective.goal for objective in evaluator.objectives] == ["min", "min"]


def test_objectives_that_cannot_be_measured_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"unknown objective 'mcas'; did you mean 'macs'"):
        make_evaluator(small_supernet(), small_splits(), ("mcas",), SETTINGS)
    refused = {
        "'energy_mj' needs exact=... or function=": Objective("energy_mj", "min"),
        "'macs' needs exact=": Objective("macs", "min"),
        "a metric may not be named 'macs'": Objective("macs", "min", function=share_of_class_0),
        "a metric may not be named 'top1_percent'": Objective(
            "top1_percent", "max", function=share_of_class_0
        ),
        """the goal of 'latency_ms' is "min", got "max\"""": Objective("latency_ms", "max"),
        """the goal of 'top1_percent' is "max", got "min\"""": Objective("top1_percent", "min"),
    }
    for message, objective in refused.items():
        with pytest.raises(InvalidInput, match=re.escape(message)):
            make_evaluator(small_supernet(), small_splits(), (objective,), SETTINGS)
    with pytest.raises(InvalidInput, match="each name once"):
        make_evaluator(small_supernet(), small_splits(), ("macs", "macs"), SETTINGS)


def share_of_class_0(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.argmax(dim=1) == 0).double().mean()


def class_0(function: Callable[[Any, Any], Any] = share_of_class_0) -> Objective:
    return Objective("class_0", "max", function=function)


def test_a_metric_is_measured_on_the_answers_of_the_extracted_net() -> None:
    supernet, splits = small_supernet(), small_splits()
    evaluator = make_evaluator(supernet, splits, ("top1_percent", class_0(), "macs"), SETTINGS)
    config = supernet.space.uniform(0.5)
    net = extract(supernet, config, EXAMPLE, evaluator.statistics_of(config))
    found = evaluator(config)
    assert found.values[0] == top1_percent(net, splits.search_val)
    assert found.values[1] == float(share_of_class_0(*answers(net, splits.search_val)))
    assert found.spread is None


def test_metrics_of_the_settings_are_objectives_by_name() -> None:
    named = MetricSettings(function=f"{__name__}:share_of_class_0", goal="min")
    settings = SETTINGS.model_copy(update={"metrics": {"class_0": named}})
    supernet = small_supernet()
    evaluator = make_evaluator(supernet, small_splits(), ("class_0",), settings)
    assert evaluator.objectives == (Objective("class_0", "min", function=share_of_class_0),)
    with pytest.raises(InvalidInput, match="'class_1'; did you mean 'class_0'"):
        make_evaluator(supernet, small_splits(), ("class_1",), settings)


def test_a_metric_that_fails_makes_a_failed_evaluation_and_the_search_goes_on() -> None:
    supernet, asked = small_supernet(), []

    def moody(logits: Tensor, targets: Tensor) -> float:
        asked.append(1)
        return math.nan if len(asked) == 2 else 1.0

    evaluator = make_evaluator(supernet, small_splits(), (class_0(moody), "macs"), SETTINGS)
    found = search(supernet.space, evaluator, "random", budget=Budget(5), progress=False)
    assert [e.status for e in found.evaluations] == ["ok", "failed", "ok", "ok", "ok"]
    assert "metric 'class_0' must be a finite number, got nan" in found.evaluations[1].reason


def test_latency_is_that_of_the_extracted_net_beside_the_largest_one() -> None:
    supernet = small_supernet()
    meter = Meter(supernet)
    objectives = ("top1_percent", "latency_ms", "macs")
    evaluator = make_evaluator(supernet, small_splits(), objectives, SETTINGS, latency=meter)
    config = supernet.space.smallest()
    found = evaluator(config)
    [net] = meter.timed
    assert count_params(net) == supernet.costs.params(supernet.space.encode([config]))[0]
    assert (found.values[1], found.spread) == (1.0, (0.0, 0.25, 0.0))
    largest = evaluator(supernet.space.largest())
    assert (largest.values[1], largest.spread) == (4.0, (0.0, 0.5, 0.0))
    assert len(meter.timed) == 1


def test_latency_is_measured_without_a_meter_too() -> None:
    supernet = small_supernet()
    evaluator = make_evaluator(supernet, small_splits(), ("latency_ms",), SETTINGS)
    small, large = (evaluator(c) for c in (supernet.space.smallest(), supernet.space.largest()))
    assert small.spread is not None
    assert small.values[0] - small.spread[0] < large.values[0]  # fewer channels, blocks skipped


class Meter(LatencyMeter):
    """Has no clock: 1 ms for any net."""

    def __init__(self, supernet: Supernet, **profile: Any) -> None:
        super().__init__(supernet.model, EXAMPLE, known=Latency(4.0, 3.5, 4.5, 30))
        self.profile |= profile
        self.timed: list[nn.Module] = []

    def __call__(self, net: nn.Module, seed: int = 0) -> Latency:
        self.timed.append(net)
        return Latency(1.0, 0.75, 1.25, 12)


def test_the_context_covers_metrics_and_the_profile_of_latencies_and_nothing_that_is_not_measured() -> None:
    supernet = small_supernet()

    def context(*objectives: str | Objective, **profile: Any) -> str:
        meter = Meter(supernet, **profile)
        return make_evaluator(supernet, small_splits(), objectives, SETTINGS, latency=meter).context

    plain = context("top1_percent")
    assert plain == context("top1_percent", "macs") == context("top1_percent", threads=64)
    others = [
        context("top1_percent", class_0()),
        context("top1_percent", class_0(lambda logits, targets: 1.0)),
        context("top1_percent", "latency_ms"),
        context("top1_percent", "latency_ms", threads=64),
        context("top1_percent", "latency_ms", processor="another one"),
    ]
    assert len({plain, *others}) == 6
    assert context("top1_percent", class_0()) == others[0]


def test_data_of_another_size_are_refused() -> None:
    wrong = [(torch.zeros(4, 1, 9, 9), torch.zeros(4, dtype=torch.int64))]
    with pytest.raises(InvalidInput, match=r"\[1, 8, 8\], got \[1, 9, 9\]"):
        make(dataclasses.replace(small_splits(), calibration=wrong))
    with pytest.raises(InvalidInput, match=r"\[1, 8, 8\], got \[1, 9, 9\]"):
        make(dataclasses.replace(small_splits(), search_val=wrong))(small_supernet().space.smallest())


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidInput, match=r'torch finds no CUDA device. Use "auto" or "cpu"'):
        make(device="cuda")


def test_an_evaluator_refuses_weights_that_changed_since_it_was_made() -> None:
    supernet = small_supernet()
    evaluator, config = make_evaluator(supernet, small_splits(), settings=SETTINGS), supernet.space.smallest()
    evaluator(config)
    supernet.to("cpu").double().float()
    evaluator(config)
    supernet.reorder({"stem": torch.arange(8).flip(0)})
    for use in (evaluator, evaluator.statistics_of):
        with pytest.raises(InvalidInput, match="weights changed since this evaluator was made"):
            use(config)
