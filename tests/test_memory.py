from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import Tensor, nn

from subnet_search.memory import channels_last, in_order, runs_channels_last

IMAGES = torch.randn(4, 3, 8, 8)


class Flattening(nn.Module):
    """Flattens a feature map with `.view`, which needs its channels first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.linear = nn.Linear(6 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return self.linear(x.view(len(x), -1))


class Pooling(Flattening):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).mean((2, 3))


def test_a_view_of_a_feature_map_keeps_images_channels_first() -> None:
    assert not runs_channels_last(Flattening(), IMAGES)
    assert runs_channels_last(Pooling(), IMAGES)


def test_a_view_is_noticed_for_grey_images_too_where_only_the_order_of_weights_counts() -> None:
    grey = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), Flattening()).eval()
    images = torch.randn(4, 1, 8, 8)
    grey(in_order(images, True))  # one channel has no order
    with channels_last(grey), pytest.raises(RuntimeError, match="view"):
        grey(in_order(images, True))
    assert not runs_channels_last(grey, images)


def test_images_that_are_no_feature_maps_stay_as_they_are() -> None:
    assert not runs_channels_last(nn.Linear(8, 2), torch.randn(4, 8))
    assert not runs_channels_last(nn.Embedding(8, 2), torch.ones(1, 1, 2, 2, dtype=torch.long))


def test_trying_the_order_changes_neither_statistics_nor_modes_nor_generators() -> None:
    net = Pooling().train()
    net.norm.eval()
    before, drawn = net.norm.running_mean.clone(), torch.get_rng_state()
    runs_channels_last(net, IMAGES)
    assert torch.equal(net.norm.running_mean, before)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert (net.training, net.conv.training, net.norm.training) == (True, True, False)


def test_channels_last_holds_inside_the_block_only_and_keeps_values_and_answers() -> None:
    net = Pooling().eval()
    weight, values = net.conv.weight, net.conv.weight.detach().clone()
    expected = net(IMAGES)
    with channels_last(net):
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(weight, values)
        assert torch.allclose(net(in_order(IMAGES, True)), expected, atol=1e-6)
    assert net.conv.weight is weight
    assert weight.is_contiguous()
    assert torch.equal(weight, values)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
@pytest.mark.slow
def test_freed_memory_is_used_again_without_page_faults() -> None:
    code = """
        import resource, sys, numpy as np
        from subnet_search.memory import keep_freed_memory
        kept = keep_freed_memory() if sys.argv[1] == "keep" else True
        def faults():
            np.ones(2**23)  # 64 MiB, touched and freed
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        first, *_, last = [faults() for _ in range(6)]
        print(int(kept), last - first)
    """
    counts = {}
    for mode in ("keep", "default"):
        command = [sys.executable, "-c", textwrap.dedent(code), mode]
        kept, count = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        if kept == "0":
            pytest.skip("this C library has no mallopt")
        counts[mode] = int(count)
    assert counts["keep"] * 4 < counts["default"]
