"""The step of supernets in branches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from search_spaces.presets import BRANCH_KNOB
from subnet_search import ElasticSettings, make_elastic
from subnet_search.small_models import SmallResNet
from subnet_search.training.branches import BranchStep


@pytest.mark.parametrize("settings", [{"depth": False}, {"adaptive_depth": True}])
def test_one_pass_leaves_the_gradients_of_each_number_of_branches(settings: dict[str, bool]) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(12, 1, 8, 8), torch.arange(12) % 4
    net = SmallResNet((2, 2), 8, 4, in_channels=1).double()
    supernet = make_elastic(net, x[:1].double(), ElasticSettings(branches=2, **settings)).train()
    x = x.double()
    total, space = 0.0, supernet.space
    softs = []
    for k in (1, 2):  # by themselves, in training mode: each normalises with its batch
        with supernet.subnet(space.canonical({**space.largest(), BRANCH_KNOB: k})):
            logits = supernet(x)
            loss = F.cross_entropy(logits, y)
            loss.backward()
            softs.append(logits.detach().softmax(1))
            total += loss.item()
    if supernet.sub_paths is not None:
        for k, soft in enumerate(softs, start=1):
            with supernet.subnet(space.canonical({**supernet.sub_paths.base, BRANCH_KNOB: k})):
                loss = F.cross_entropy(supernet(x), soft)
                loss.backward()
                total += loss.item()
    wanted = {name: p.grad.clone() for name, p in supernet.named_parameters() if p.grad is not None}
    supernet.zero_grad()
    found = BranchStep()(supernet, (x, y), np.random.default_rng(0))
    assert found == pytest.approx(total, rel=1e-5)
    for name, parameter in supernet.named_parameters():
        if name in wanted:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-6)
