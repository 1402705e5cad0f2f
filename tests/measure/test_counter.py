from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from subnet_search.measure import count_macs, count_params
from tests.small import small_net

B, T, D, H = 1, 7, 16, 32
ATTENTION = T * D * 3 * D + 2 * T * T * D + T * D * D  # projections, QK^T and AV, output


class Pairs(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("bij,bjk->bik", a, b)


@pytest.mark.parametrize(
    ("net", "size", "macs"),
    [
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), (1, 3, 9, 9), 5 * 5 * 8 * 3 * 9),
        (nn.Conv2d(4, 8, 3, groups=2), (1, 4, 8, 8), 6 * 6 * 8 * 2 * 9),
        (nn.Conv2d(4, 4, 5, groups=4, padding=2), (1, 4, 8, 8), 8 * 8 * 4 * 25),
        (nn.Conv1d(4, 6, 3), (1, 4, 10), 8 * 6 * 4 * 3),
        (nn.Linear(5, 7), (1, 3, 5), 3 * 5 * 7),
        (nn.Sequential(nn.BatchNorm2d(3), nn.MaxPool2d(2), nn.ReLU()), (1, 3, 8, 8), 0),
        (nn.TransformerEncoderLayer(D, 4, H, batch_first=True), (B, T, D), ATTENTION + 2 * T * D * H),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_macs_equal_the_formula(net: nn.Module, size: tuple[int, ...], macs: int, training: bool) -> None:
    assert count_macs(net.train(training), torch.randn(size)) == macs
    assert net.training == training


def test_attentions_switches_are_put_back() -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    count_macs(nn.Linear(2, 2), torch.zeros(1, 2))
    assert torch.backends.mha.get_fastpath_enabled() == before


class Token(nn.Module):
    """Hands a view of a parameter to a module, as class attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.layer = nn.Parameter(torch.randn(1, 1, 6)), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.token.expand(len(x), -1, -1))


def test_a_parameter_that_a_module_is_given_is_counted_and_still_trained() -> None:
    net = Token()
    assert count_macs(net, torch.zeros(3, 1)) == 3 * 6 * 2
    assert net.token.requires_grad


def test_examples_may_be_positional_or_named_arguments() -> None:
    a, b = torch.zeros(2, 3, 4), torch.zeros(2, 4, 5)
    assert count_macs(Pairs(), (a, b)) == count_macs(Pairs(), {"a": a, "b": b}) == 2 * 3 * 4 * 5


def test_a_shared_parameter_counts_once() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    assert count_params(net) == 32
    net[1].weight = net[0].weight
    assert count_params(net) == 16


def test_the_small_net_of_these_tests_has_the_macs_of_its_layers() -> None:
    blocks = 2 * (16 * 8 * 16 * 9 * 2)
    assert (
        count_macs(small_net(), torch.zeros(1, 1, 8, 8))
        == 16 * 8 * 9 + blocks + 16 * 8 * 9 + 16 * 8 * 16 + 64
    )
