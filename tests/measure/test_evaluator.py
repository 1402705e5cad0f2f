from __future__ import annotations

import dataclasses

import pytest
import torch

from search_spaces import InvalidInput
from subnet_search.data import Splits, TensorBatches
from subnet_search.elastic.extraction import extract
from subnet_search.elastic.statistics import recalibrate
from subnet_search.measure import SupernetEvaluator, count_macs, count_params, make_evaluator, top1_percent
from subnet_search.record import Objective
from subnet_search.settings import EvaluateSettings
from tests.small import EXAMPLE, small_data, small_splits, small_supernet

SETTINGS = EvaluateSettings(calibration_images=40, device="cpu")


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


def test_statistics_are_computed_once_for_each_subnet(monkeypatch: pytest.MonkeyPatch) -> None:
    from subnet_search.measure import evaluator as module

    calls: list[str] = []

    def counted(supernet, config, batches):  # type: ignore[no-untyped-def]
        calls.append(config.key)
        return recalibrate(supernet, config, batches)

    monkeypatch.setattr(module, "recalibrate", counted)
    evaluator, config = make(), small_supernet().space.smallest()
    evaluator(config)
    assert evaluator.statistics_of(config) is evaluator.statistics_of(config)
    assert calls == [config.key]


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
    with pytest.raises(InvalidInput, match=r"'latency_ms' needs exact="):
        make_evaluator(small_supernet(), small_splits(), (Objective("latency_ms", "min"),), SETTINGS)


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
