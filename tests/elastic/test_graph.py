"""Reading a forward: what the example leaves out, and what the reading leaves untouched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.graph import Example, copied, trace
from subnet_search.settings import ElasticSettings

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Masked(nn.Module):
    """Asks whether arguments were given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.Linear(16, 5)

    def forward(self, x: Tensor, mask: Tensor | None = None, twice: bool = False) -> Tensor:
        x = self.norm(self.conv(x))
        if mask is not None:
            x = x * mask
        if twice:
            x = x + x
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    "example", [X, (X,), {"x": X}, (X, torch.ones(1, 1, 8, 8)), {"mask": X[:, :1], "x": X}]
)
def test_arguments_that_the_example_leaves_out_have_their_defaults(example: Example) -> None:
    supernet = make_elastic(Masked().eval(), example, ElasticSettings(form="own classes"))
    assert supernet.coverage["reachable_macs_share"] == 1.0
    has_mask = len(example) > 1 if isinstance(example, tuple | dict) else False
    targets = [node.target for node in trace(Masked(), example).graph.nodes if node.op == "call_function"]
    assert any("mul" in str(target) for target in targets) == has_mask


def test_a_copy_shares_parameters_and_has_buffers_and_modes_of_its_own() -> None:
    net = Masked().train()
    copy = copied(net)
    assert copy.conv.weight is net.conv.weight
    assert copy.norm.running_mean is not net.norm.running_mean
    copy.eval()
    assert net.training
    assert net.norm.training
