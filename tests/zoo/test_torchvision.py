"""Conversion over torchvision's convolutional networks, at the resolution people use."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.extraction import difference_on, extract
from subnet_search.models import load_model

QUICK = ["resnet18", "mobilenet_v3_small"]
SLOW = [
    "resnet34", "resnet50", "resnext50_32x4d", "vgg11_bn", "alexnet", "mobilenet_v2", "mobilenet_v3_large",
    "mnasnet1_0", "efficientnet_b0", "regnet_x_400mf", "regnet_y_400mf",
]  # fmt: skip
# name: (width groups, skippable blocks), counted by hand from the architectures
FREEDOMS = {
    "resnet18": (12, 5), "resnet34": (20, 13), "resnet50": (37, 12), "resnext50_32x4d": (21, 12),
    "vgg11_bn": (10, 0), "alexnet": (7, 0), "mobilenet_v2": (25, 10),
}  # fmt: skip


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_torchvision_network(name: str) -> None:
    torch.manual_seed(0)
    model = load_model(f"torchvision:{name}").eval()
    x = torch.randn(1, 3, 224, 224)
    supernet = make_elastic(model, x).eval()
    assert torch.equal(model(x), supernet(x))
    coverage = supernet.coverage
    if name in FREEDOMS:
        assert (len(coverage["groups"]), len(coverage["blocks"])) == FREEDOMS[name]
    assert coverage["reachable_macs_share"] >= 0.95
    assert coverage["smallest"]["macs"] <= 0.15 * coverage["largest"]["macs"]
    rng = np.random.default_rng(0)
    for config in [supernet.space.smallest(), *supernet.space.sample(rng, 2)]:
        net = extract(supernet, config, x)
        difference, scale = difference_on(supernet, config, net, x)
        assert difference <= 1e-5 * max(scale, 1.0)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(x)
        row = supernet.space.encode([config])
        assert supernet.costs.macs(row)[0] == counter.get_total_flops() // 2
        assert supernet.costs.params(row)[0] == sum(p.numel() for p in net.parameters())
    before = supernet(x)
    supernet.reorder({n: torch.from_numpy(rng.permutation(g.units)) for n, g in supernet.groups.items()})
    torch.testing.assert_close(
        supernet(x), before, atol=1e-3, rtol=1e-3
    )  # float64 exactness: see tests/elastic
    assert {type(m) for m in net.modules()} <= {type(m) for m in model.modules()} | {nn.Identity}
