from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from search_spaces import InvalidInput
from subnet_search.ranking import rank, taylor_ranking
from subnet_search.settings import TrainSettings
from subnet_search.training import PlainStep, train
from tests.small import small_data, small_splits, small_supernet

BATCHES = [small_data(16, seed=1), small_data(16, seed=2)]


def gated_order(path: str, units: int) -> list[int]:
    """By finite differences: each channel that reaches the readers is scaled by 1 + e and 1 - e."""
    supernet = small_supernet().double().eval()
    scores = torch.zeros(units, dtype=torch.float64)
    gate = torch.ones(units, dtype=torch.float64)
    reader = supernet.model.get_submodule(path)
    handle = reader.register_forward_pre_hook(
        lambda _, args: (args[0] * gate.view(1, -1, *[1] * (args[0].ndim - 2)),)
    )
    with torch.no_grad():
        for images, labels in BATCHES:
            for unit in range(units):
                losses: list[Tensor] = []
                for sign in (1, -1):
                    gate[unit] = 1 + sign * 1e-4
                    losses.append(F.cross_entropy(supernet(images.double()), labels))
                    gate[unit] = 1
                scores[unit] += ((losses[0] - losses[1]) / 2e-4) ** 2
    handle.remove()
    return scores.argsort(descending=True).tolist()


@pytest.mark.parametrize(("group", "reader"), [("block1.conv1", "block1.conv2"), ("head", "classifier")])
def test_units_are_ordered_by_the_squared_derivative_of_a_gate_on_them(group: str, reader: str) -> None:
    supernet = small_supernet()
    order = rank(supernet, BATCHES, taylor_ranking)[group].tolist()
    assert order == gated_order(reader, supernet.groups[group].units)


def test_no_batch_is_refused() -> None:
    with pytest.raises(InvalidInput, match="at least one batch"):
        rank(small_supernet(), [], taylor_ranking)


def test_taking_the_last_units_away_costs_less_than_taking_the_first() -> None:
    supernet, splits = small_supernet(), small_splits(96)
    train(supernet, splits, PlainStep(), TrainSettings(epochs=12, lr=0.05, device="cpu"))
    images, labels = small_data(96, seed=1)
    ranking = rank(supernet.eval(), [(images, labels)], taylor_ranking)
    for name, reader in (
        ("block1.conv1", "block1.conv2"),
        ("block2.conv1", "block2.conv2"),
        ("head", "classifier"),
    ):
        losses = []
        for gone in (ranking[name][-4:], ranking[name][:4]):
            weight = supernet.model.get_submodule(reader).weight
            kept = weight.detach().clone()
            with torch.no_grad():
                weight[:, gone] = 0
                losses.append(F.cross_entropy(supernet(images), labels).item())
                weight.copy_(kept)
        assert losses[0] < losses[1]
