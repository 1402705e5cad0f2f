"""Steps on machines made of arithmetic, and the layers that stand for a network's."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from torch import nn

from search_spaces import InvalidInput
from subnet_search.measure import staircase as staircases
from subnet_search.measure.latency import LatencyMeter
from subnet_search.measure.staircase import (
    _largest_layers,
    _micro_net,
    find_steps,
    rounding_cost,
    staircase,
    steps_table,
)
from subnet_search.measure.timing import Latency
from subnet_search.settings import DeviceSettings
from tests.small import small_supernet

WIDTHS = range(32, 97)
MACHINES: dict[str, tuple[Callable[[int], float], int]] = {
    "steps of 8": (lambda w: 1.0 + math.ceil(w / 8), 8),
    "steps of 16": (lambda w: 1.0 + math.ceil(w / 16), 16),
    "evenly": (lambda w: float(w), 1),
    "a penalty for widths that are not multiples of 4": (lambda w: w * (1.5 if w % 4 else 1.0), 4),
}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_step_of_a_machine_is_found(machine: str, noise: float) -> None:
    time, step = MACHINES[machine]
    rng = np.random.default_rng(0)
    times = [time(w) * math.exp(noise * rng.standard_normal()) for w in WIDTHS]
    found = staircase("conv 3x3", "layer", list(WIDTHS), times, [0.01] * len(times))
    # where widths between are slow, steps of 8 cost as little as those of 4
    assert found.step == step or (machine.startswith("a penalty") and found.step > step)
    if step > 1:
        assert found.rounding_percent <= 0.25 * found.even_percent


def test_rounding_up_costs_what_it_costs_in_channels_where_time_goes_evenly() -> None:
    widths = list(range(8, 17))
    rounding, even = rounding_cost(widths, [float(w) for w in widths], 2)
    assert rounding == pytest.approx(even)
    assert even == pytest.approx(np.mean([0, 1 / 9, 0, 1 / 11, 0, 1 / 13, 0, 1 / 15, 0]))
    assert rounding_cost(widths, [1.0] * 9, 32) == (0.0, 0.0)  # not one whole step was looked at


def test_layers_of_each_kind_are_timed_at_widths_up_to_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    supernet, seen = small_supernet(), list[tuple[str, int]]()

    def timed(self: LatencyMeter, net: nn.Sequential, *rest: object, **more: object) -> tuple[Latency, None]:
        layer = net[0]
        width = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
        seen.append((type(layer).__name__, width))
        ms = float(math.ceil(width / 4))
        return Latency(ms, ms, ms, 1), None

    monkeypatch.setattr(LatencyMeter, "measured", timed)
    monkeypatch.setattr(LatencyMeter, "_alone", lambda self: Latency(1.0, 1.0, 1.0, 1))
    found = {one.kind: one for one in find_steps(supernet, DeviceSettings(threads=1))}
    assert {"conv 3x3", "conv 1x1", "depthwise 3x3"} <= found.keys()
    assert found["conv 3x3"].layer == "block1.conv1"
    assert found["conv 3x3"].widths == tuple(range(2, 17))
    assert found["conv 3x3"].step == 4
    assert len(seen) == sum(len(one.widths) for one in found.values())
    assert "conv 3x3             4" in steps_table(list(found.values()))


def test_a_micro_net_takes_what_the_layer_takes() -> None:
    for kind, (_, layer, size) in _largest_layers(small_supernet()).items():
        for width in (2, 7):
            net = _micro_net(layer, width)
            entering = staircases._entering(layer, size, width)
            assert net(staircases.torch.randn(1, *entering)) is not None, kind


def test_a_network_without_such_layers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staircases, "_largest_layers", lambda supernet: {})
    with pytest.raises(InvalidInput, match="no convolution or linear layer"):
        find_steps(small_supernet(), DeviceSettings())
