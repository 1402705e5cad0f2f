from __future__ import annotations

import pytest
import torch

from search_spaces import InvalidInput
from subnet_search.settings import TrainSettings
from subnet_search.training.optimizer import lr_factor, make_optimizer
from tests.small import small_supernet


def test_only_weights_of_convolutions_and_linear_layers_decay() -> None:
    supernet = small_supernet()
    optimizer = make_optimizer(supernet, TrainSettings(weight_decay=0.1))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: decays[id(p)] for name, p in supernet.model.named_parameters()}
    weights = ("stem", "conv1", "conv2", "depthwise", "head", "classifier")
    wanted = {n: 0.1 if n.endswith(".weight") and n.split(".")[-2] in weights else 0.0 for n in found}
    assert found == wanted


def test_frozen_parameters_are_not_trained() -> None:
    supernet = small_supernet()
    for parameter in supernet.parameters():
        parameter.requires_grad_(parameter is supernet.model.classifier.weight)
    (group,) = make_optimizer(supernet, TrainSettings()).param_groups
    assert len(group["params"]) == 1


def test_the_learning_rate_rises_linearly_and_falls_along_a_cosine() -> None:
    factors = [lr_factor(step, 14, 4) for step in range(14)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    wanted = [0.5 + 0.5 * torch.cos(torch.tensor(torch.pi * k / 10)).item() for k in range(10)]
    assert factors[4:] == pytest.approx(wanted)


def test_a_warm_up_longer_than_the_run_is_cut() -> None:
    assert [lr_factor(step, 2, 100) for step in range(2)] == [0.5, 1.0]


def test_a_network_that_is_frozen_as_a_whole_is_refused() -> None:
    with pytest.raises(InvalidInput, match="all its parameters are frozen"):
        make_optimizer(small_supernet().requires_grad_(False), TrainSettings())
