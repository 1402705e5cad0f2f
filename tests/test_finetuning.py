from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from search_spaces import InvalidInput, SubnetSearchError
from subnet_search.data import Batch
from subnet_search.elastic.extraction import extract
from subnet_search.elastic.statistics import recalibrate
from subnet_search.elastic.supernet import Supernet
from subnet_search.finetuning import finetune
from subnet_search.measure import top1_percent
from subnet_search.record import create_run
from subnet_search.settings import FinetuneSettings, TrainSettings
from subnet_search.training import PlainStep, train
from tests.small import EXAMPLE, small_splits, small_supernet

SPLITS = small_splits()
SETTINGS = FinetuneSettings(epochs=4, lr=0.05, device="cpu")


class Forbidden:
    def __iter__(self) -> Iterator[Batch]:
        raise AssertionError("the test split may not be read")


@pytest.fixture(scope="module")
def trained() -> Supernet:
    supernet = small_supernet()
    train(supernet, SPLITS, PlainStep(), TrainSettings(epochs=24, lr=0.05, device="cpu"))
    return supernet


def subnet(supernet: Supernet, share: float = 0.5) -> nn.Module:
    config = supernet.space.uniform(share)
    assert SPLITS.calibration is not None
    return extract(supernet, config, EXAMPLE, recalibrate(supernet, config, SPLITS.calibration))


def state_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_tuning_lowers_the_loss_raises_the_accuracy_and_leaves_everything_else_alone(
    trained: Supernet,
) -> None:
    supernet = copy.deepcopy(trained).train().requires_grad_()
    supernet.zero_grad()
    net = subnet(supernet)
    before, supernet_before = state_of(net), state_of(supernet)
    splits = dataclasses.replace(SPLITS, test=Forbidden())  # type: ignore[arg-type]
    result = finetune(net, splits, SETTINGS.model_copy(update={"epochs": 12}), teacher=supernet)
    assert result.losses[-1] < 0.9 * result.losses[0]
    assert result.after > result.before + 20
    assert same(state_of(net), before)
    assert same(state_of(supernet), supernet_before)
    assert supernet.training
    assert all(p.grad is None for p in supernet.parameters())
    assert result.net.training == net.training


def test_before_and_after_are_search_validation_accuracies_of_the_nets() -> None:
    net = subnet(small_supernet())
    result = finetune(net, SPLITS, SETTINGS)
    assert result.before == top1_percent(net, SPLITS.search_val)
    assert result.after == top1_percent(result.net, SPLITS.search_val)


def test_a_clearly_worse_net_never_replaces_the_first() -> None:
    net = subnet(small_supernet())
    good = finetune(net, SPLITS, SETTINGS.model_copy(update={"epochs": 12})).net
    ruined = finetune(good, SPLITS, SETTINGS.model_copy(update={"lr": 3.0, "epochs": 3}))
    assert ruined.after == ruined.before
    assert same(state_of(ruined.net), state_of(good))


@pytest.mark.parametrize(("num_right", "worse"), [(190, False), (181, False), (178, True)])
def test_a_difference_within_two_standard_errors_is_not_clear(num_right: int, worse: bool) -> None:
    from subnet_search.finetuning import _clearly_worse

    before, after = np.arange(200) < 190, np.arange(200) < num_right  # two errors: 5.1 to 5.4 %
    assert _clearly_worse(after, before) == worse


def test_no_epoch_gives_the_net_back() -> None:
    net = subnet(small_supernet())
    result = finetune(net, SPLITS, SETTINGS.model_copy(update={"epochs": 0}))
    assert (result.losses, result.before) == ((), result.after)
    assert same(state_of(result.net), state_of(net))


@pytest.mark.parametrize(("share", "equal"), [(0.0, True), (0.5, False)])
def test_the_teachers_share_decides_whether_it_matters(share: float, equal: bool) -> None:
    supernet, settings = small_supernet(), SETTINGS.model_copy(update={"teacher_share": share})
    alone = finetune(subnet(supernet), SPLITS, settings)
    taught = finetune(subnet(supernet), SPLITS, settings, teacher=small_supernet(seed=5))
    assert (alone.losses == taught.losses) == equal


def test_a_teacher_alone_teaches_its_own_answers(trained: Supernet) -> None:
    settings = SETTINGS.model_copy(update={"teacher_share": 1.0, "epochs": 16})
    wrong_labels = [(images, (labels + 1) % 4) for images, labels in SPLITS.calibration or ()]
    splits = dataclasses.replace(SPLITS, train=wrong_labels)
    student = subnet(small_supernet(seed=2), 1.0)
    assert finetune(student, splits, settings, teacher=trained).after > 80


def test_a_resumed_tuning_equals_an_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subnet_search.finetuning as module

    supernet = small_supernet()
    settings = SETTINGS.model_copy(update={"checkpoint_seconds": 1e-9})
    wanted = finetune(subnet(supernet), SPLITS, settings, teacher=supernet)
    calls, update = 0, module._update

    def stopping(*arguments: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise SubnetSearchError("stopped")
        return update(*arguments)

    monkeypatch.setattr(module, "_update", stopping)
    with create_run(tmp_path / "run", "") as run:
        with pytest.raises(SubnetSearchError, match="stopped"):
            finetune(
                subnet(supernet), SPLITS, settings, teacher=supernet, run=run, checkpoint="subnets/abc/tuning"
            )
        found = finetune(
            subnet(supernet), SPLITS, settings, teacher=supernet, run=run, checkpoint="subnets/abc/tuning"
        )
    assert calls == 8 + 12 - 7
    assert (found.before, found.after, found.losses) == (wanted.before, wanted.after, wanted.losses)
    assert same(state_of(found.net), state_of(wanted.net))


def test_an_uncalibrated_net_is_refused() -> None:
    supernet = small_supernet()
    with pytest.raises(InvalidInput, match="cannot be fine-tuned; pass statistics="):
        finetune(extract(supernet, supernet.space.smallest(), EXAMPLE), SPLITS, SETTINGS)
